"""An adapter's files as PEFT expects them: settings, tensors and a card."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from sordino.edits.provenance import plain_card
from sordino.edits.record import Provenance
from sordino.errors import UserError
from sordino.files import counted, write_json
from sordino.interventions import Dampening
from sordino.markdown import with_front
from sordino.models.norms import NormGain
from sordino.models.reference import ModelRef

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def write_files(
    target: Path,
    ref: ModelRef,
    tensors: Mapping[str, NDArray[np.float32]],
    settings: Mapping[str, Any],
) -> None:
    """Write the two files of an adapter.

    Args:
        target: The folder.
        ref: The model that it is for.
        tensors: By module path in that model and the tensor's name there.
        settings: The settings of its kind; those of all kinds are added.
    """
    named = {f"base_model.model.{name}": values for name, values in tensors.items()}
    # `save_file` would make it readable to its owner alone.
    (target / WEIGHTS).write_bytes(save(named, metadata={"format": "pt"}))
    common = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": ref.name,
        "revision": ref.revision or None,
        "modules_to_save": None,
        "inference_mode": True,
    }
    write_json(target / CONFIG, {**settings, **common})


def refuse_nothing(dampening: Dampening) -> None:
    """Raise `UserError` if the adapter would be empty."""
    if not dampening.changed:
        raise UserError("All factors are 1, so the adapter would be empty.")


def refuse_norms(modules: Mapping[str, Any], changed: Iterable[str], kind: str) -> None:
    """Raise `UserError` if a changed site is a norm, because PEFT adapts only matrices."""
    if norms := [site for site in changed if isinstance(modules[site], NormGain)]:
        raise UserError(
            f"{counted(len(norms), 'site is a norm', 'sites are norms')} (such as {norms[0]}), for "
            f"which PEFT has no {kind}: use `format=weights` or `format=hooks`."
        )


def card(record: Provenance, tag: str, note: str) -> str:
    """The README.md of an adapter's folder, with the lines that load it.

    Args:
        record: The folder's record.
        tag: The hub's tag for its kind.
        note: The text below these lines.
    """
    return with_front(
        {"library_name": "peft", **front(record, tag)}, plain_card(record) + _USE + note
    )


def front(record: Provenance, tag: str) -> dict[str, Any]:
    """The card's YAML, for the hub."""
    found: dict[str, Any] = {"tags": [tag, "sordino"]}
    if record.model.revision:  # only a model of the hub has a name there
        found["base_model"] = record.model.name
    return found


_USE = """
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("the original model")
model = PeftModel.from_pretrained(model, "this folder")
```

"""
