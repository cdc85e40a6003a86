"""An (IA)³ adapter for PEFT: one vector per site, by which its output is multiplied.

That is what dampening does, so the adapter computes the same while the model runs. The paper's own
vectors in the feed-forward part (Liu et al., arXiv:2205.05638) multiply an input; PEFT calls such
modules `feedforward_modules`, and here there are none.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sordino.edits import peft_layout
from sordino.edits.formats import FORMATS, Format, Written
from sordino.edits.record import Provenance
from sordino.errors import UserError
from sordino.files import counted
from sordino.interventions import Dampening
from sordino.models.experts import ExpertMatrix
from sordino.models.open import empty_model, open_model
from sordino.models.reference import ModelRef


def write_ia3(
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
        UserError: The dampening shifts, or changes nothing, or does not fit the model, or changes
            what PEFT has no such adapter for.
    """
    if dampening.shifted:
        raise UserError(
            f"{counted(len(dampening.shifted), 'site is', 'sites are')} shifted (such as "
            f"{dampening.shifted[0]}), and an (IA)³ adapter can only multiply: use "
            "`format=weights` or `format=hooks`."
        )
    peft_layout.refuse_nothing(dampening)
    changed = {site: values for site, values in dampening.factors.items() if (values != 1).any()}
    # A folder's module tree needs no weights; a GGUF file's is made while they are read.
    model = empty_model(ref) if ref.kind == "folder" else open_model(ref, device="cpu").model
    modules = dampening.modules(model)
    peft_layout.refuse_norms(modules, changed, "(IA)³ adapter")
    _refuse_experts(modules, changed)
    vectors = {
        f"{site}.ia3_l": np.ascontiguousarray(values[:, None]) for site, values in changed.items()
    }
    settings = {
        "peft_type": "IA3",
        # One pattern that must match whole paths: names in a list match the ends of others, too.
        "target_modules": "|".join(re.escape(site) for site in changed),
        "feedforward_modules": [],
        "fan_in_fan_out": not all(isinstance(modules[s], torch.nn.Linear) for s in changed),
        "init_ia3_weights": True,
    }
    peft_layout.write_files(target, ref, vectors, settings)
    return Written()


def _refuse_experts(modules: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    if experts := [site for site in changed if isinstance(modules[site], ExpertMatrix)]:
        raise UserError(
            f"{counted(len(experts), 'site is a matrix', 'sites are matrices')} of MoE experts "
            f"(such as {experts[0]}), whose outputs no (IA)³ adapter of PEFT multiplies: use "
            "`format=lora`, `format=weights` or `format=hooks`."
        )


def card(record: Provenance) -> str:
    """The README.md of an adapter's folder, with the lines that load it."""
    return peft_layout.card(record, "ia3", _NOTE)


_NOTE = "`model.merge_and_unload()` writes the factors into its weights.\n"

FORMATS["ia3"] = Format(
    "as an (IA)³ adapter for PEFT (no weights are here)",
    write_ia3,
    card,
    (peft_layout.WEIGHTS,),
)
