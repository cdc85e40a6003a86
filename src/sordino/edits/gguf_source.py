"""A GGUF file, de-quantised and baked to a transformers folder."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sordino.edits.biases import new_biases, without_bias
from sordino.interventions import Dampening
from sordino.interventions.dampening import ensure_bias_
from sordino.models.calls import quiet_transformers
from sordino.models.dtypes import COMPUTE_DTYPES
from sordino.models.open import OpenModel, open_model
from sordino.models.reference import ModelRef
from sordino.progress import note


def write_folder(
    ref: ModelRef,
    dampening: Dampening,
    target: Path,
    dtype: str,
    opened: OpenModel | None = None,
) -> Mapping[str, bool]:
    """Load a GGUF model, dampen its weights and save it with its tokenizer into `target`.

    Args:
        ref: The GGUF file.
        dampening: Factors for its sites.
        target: An empty folder.
        dtype: Of the weights to write; "auto" is float32.
        opened: The same model, open and as it was loaded, if there is one. Its weights stay.

    Returns:
        The settings of the configuration that were changed, for biases that the model lacked.

    Raises:
        UserError: The model cannot be loaded, the dampening does not fit it, or a bias that a
            shift needs cannot be.
    """
    if opened is not None and _holds(opened, dtype):
        model, tokenizer = deepcopy(opened.model), _as_loaded(opened.tokenizer)
    else:
        note(f"De-quantising {ref.name} …")
        fresh = open_model(ref, device="cpu", dtype=dtype)
        model, tokenizer = fresh.model, fresh.tokenizer
    settings = _add_biases(model, dampening)
    dampening.bake_into(model)
    with quiet_transformers():
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    for weights in target.glob("*.safetensors"):
        # The library makes them readable for their owner alone, unlike the other files.
        weights.chmod((target / "config.json").stat().st_mode)
    return settings


def _holds(opened: OpenModel, dtype: str) -> bool:
    """Whether an open model has its weights on the processor and in the dtype to write."""
    wanted = torch.float32 if dtype == "auto" else COMPUTE_DTYPES[dtype]
    return all(
        parameter.dtype == wanted and parameter.device.type == "cpu"
        for parameter in opened.model.parameters()
    )


def _as_loaded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file without the state of its last call, which would be saved.

    Every call sets truncation and padding again.
    """
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        backend.no_truncation()
        backend.no_padding()
    return tokenizer


def _add_biases(model: PreTrainedModel, dampening: Dampening) -> Mapping[str, bool]:
    """Add the biases that shifts need, and others that the setting adds; return the setting."""
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
