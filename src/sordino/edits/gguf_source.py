"""A GGUF file, de-quantised and baked to a transformers folder."""

from pathlib import Path

from sordino.interventions import Dampening
from sordino.models.open import open_model, quiet_transformers
from sordino.models.reference import ModelRef
from sordino.progress import note


def write_folder(ref: ModelRef, dampening: Dampening, target: Path, dtype: str) -> None:
    """Load a GGUF model, dampen its weights and save it with its tokenizer into `target`.

    Args:
        ref: The GGUF file.
        dampening: Factors for its sites.
        target: An empty folder.
        dtype: Of the weights to write; "auto" is float32.

    Raises:
        UserError: The model cannot be loaded, or the dampening does not fit it.
    """
    note(f"De-quantising {ref.name} …")
    # Always opened anew: an open model of the caller's would be changed, or be on another dtype.
    opened = open_model(ref, device="cpu", dtype=dtype)
    dampening.bake_into(opened.model)
    with quiet_transformers():
        opened.model.save_pretrained(target)
        opened.tokenizer.save_pretrained(target)
