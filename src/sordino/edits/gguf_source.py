"""A GGUF file, de-quantised and baked to a transformers folder."""

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel

from sordino.edits.biases import new_biases, without_bias
from sordino.interventions import Dampening
from sordino.interventions.dampening import ensure_bias_
from sordino.models.calls import quiet_transformers
from sordino.models.open import open_model
from sordino.models.reference import ModelRef
from sordino.progress import note


def write_folder(
    ref: ModelRef, dampening: Dampening, target: Path, dtype: str
) -> Mapping[str, bool]:
    """Load a GGUF model, dampen its weights and save it with its tokenizer into `target`.

    Args:
        ref: The GGUF file.
        dampening: Factors for its sites.
        target: An empty folder.
        dtype: Of the weights to write; "auto" is float32.

    Returns:
        The settings of the configuration that were changed, for biases that the model lacked.

    Raises:
        UserError: The model cannot be loaded, the dampening does not fit it, or a bias that a
            shift needs cannot be.
    """
    note(f"De-quantising {ref.name} …")
    # Always opened anew: an open model of the caller's would be changed, or be on another dtype.
    opened = open_model(ref, device="cpu", dtype=dtype)
    settings = _add_biases(opened.model, dampening)
    dampening.bake_into(opened.model)
    with quiet_transformers():
        opened.model.save_pretrained(target)
        opened.tokenizer.save_pretrained(target)
    for weights in target.glob("*.safetensors"):
        # They are saved for their owner's eyes alone, and the other files as the user wants it.
        weights.chmod((target / "config.json").stat().st_mode)
    return settings


def _add_biases(model: PreTrainedModel, dampening: Dampening) -> Mapping[str, bool]:
    """Add the biases that shifts need, and what else their setting adds; give that setting."""
    lacking = without_bias(model, dampening)
    if not lacking:
        return {}
    biases = new_biases(model.config, model.config.to_dict(), lacking)
    for name in biases.names:
        ensure_bias_(model.get_submodule(name.removesuffix(".bias")))
    text = model.config.get_text_config(decoder=True)
    for name, value in biases.settings.items():
        setattr(text, name, value)
    return biases.settings
