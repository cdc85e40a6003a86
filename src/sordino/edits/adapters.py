"""An (IA)³ adapter for PEFT: one vector per site, by which its output is multiplied.

That is what dampening does, so the adapter computes the same while the model runs. The paper's own
vectors in the feed-forward part (Liu et al., arXiv:2205.05638) multiply an input; PEFT calls such
modules `feedforward_modules`, and here there are none.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from sordino.edits.formats import FORMATS, Format, Written
from sordino.edits.provenance import plain_card
from sordino.edits.record import Provenance
from sordino.errors import UserError
from sordino.files import write_json
from sordino.interventions import Dampening
from sordino.markdown import with_front
from sordino.models.experts import ExpertMatrix
from sordino.models.norms import NormGain
from sordino.models.open import empty_model, open_model
from sordino.models.reference import ModelRef

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def write_adapter(
    ref: ModelRef,
    dampening: Dampening,
    target: Path,
    dtype: str = "auto",  # noqa: ARG001 (the vectors are float32)
) -> Written:
    """Write the adapter's two files into a folder.

    The vectors are float32 [neurons, 1], of the sites that change and no others.

    Args:
        ref: The model that the adapter is for.
        dampening: Factors for its sites.
        target: An empty folder.
        dtype: Ignored.

    Raises:
        UserError: The dampening shifts, or changes nothing, or does not fit the model.
    """
    if dampening.shifted:
        raise UserError(
            f"{len(dampening.shifted)} sites are shifted (such as {dampening.shifted[0]}), and an "
            "(IA)³ adapter can only multiply: use `format=weights` or `format=hooks`."
        )
    changed = {site: values for site, values in dampening.factors.items() if (values != 1).any()}
    if not changed:
        raise UserError("All factors are 1, so the adapter would be empty.")
    # A folder's module tree needs no weights; a GGUF file's is made while they are read.
    model = empty_model(ref) if ref.kind == "folder" else open_model(ref, device="cpu").model
    modules = dampening.modules(model)
    refuse_without_adapter(modules, changed, "(IA)³ adapter")
    vectors = {
        f"base_model.model.{site}.ia3_l": np.ascontiguousarray(values[:, None])
        for site, values in changed.items()
    }
    # `save_file` would make it readable to its owner alone.
    (target / WEIGHTS).write_bytes(save(vectors, metadata={"format": "pt"}))
    config: dict[str, Any] = {
        "peft_type": "IA3",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": ref.name,
        "revision": ref.revision or None,
        # One pattern that must match whole paths: names in a list match the ends of others, too.
        "target_modules": "|".join(re.escape(site) for site in changed),
        "feedforward_modules": [],
        "fan_in_fan_out": not all(isinstance(modules[s], torch.nn.Linear) for s in changed),
        "modules_to_save": None,
        "init_ia3_weights": True,
        "inference_mode": True,
    }
    write_json(target / CONFIG, config)
    return Written()


def refuse_without_adapter(modules: Mapping[str, Any], changed: Iterable[str], kind: str) -> None:
    """Refuse sites that PEFT has no adapter for: it adapts modules with a matrix of their own.

    Args:
        modules: The modules of sites, by path.
        changed: The sites that the adapter would change.
        kind: What the adapter is called.

    Raises:
        UserError: One of the sites is a norm, or a matrix of MoE experts.
    """
    sites = list(changed)
    if norms := [site for site in sites if isinstance(modules[site], NormGain)]:
        raise UserError(
            f"{len(norms)} sites are norms (such as {norms[0]}), for which PEFT has no {kind}: "
            "use `format=weights` or `format=hooks`."
        )
    if experts := [site for site in sites if isinstance(modules[site], ExpertMatrix)]:
        raise UserError(
            f"{len(experts)} sites are matrices of MoE experts (such as {experts[0]}), for which "
            f"PEFT has no {kind}: use `format=weights` or `format=hooks`, or choose other `sites` "
            "when you find the expertise."
        )


def card(record: Provenance) -> str:
    """The README.md of an adapter's folder, with the lines that load it."""
    front: dict[str, Any] = {"library_name": "peft", "tags": ["ia3", "sordino"]}
    if record.model.revision:  # only a model of the hub has a name there
        front["base_model"] = record.model.name
    return with_front(front, plain_card(record) + _USE)


_USE = """
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("the original model")
model = PeftModel.from_pretrained(model, "this folder")
```

`model.merge_and_unload()` writes the factors into its weights.
"""

FORMATS["ia3"] = Format(
    "as an (IA)³ adapter for PEFT (no weights are here)", write_adapter, card, (WEIGHTS,)
)
