"""Shifts of the residual stream as a control vector in a GGUF file, as llama.cpp loads it.

llama.cpp adds the vector `direction.i` to the residual stream after layer i's feed-forward part
(`common_control_vector_load` and `build_cvec` in its source). A shift of the last linear layer of
that part does the same, if no norm and no factor lies between. Layer 0 has no direction.
"""

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from sordino.edits.formats import FORMATS, Format, Written
from sordino.edits.provenance import plain_card
from sordino.edits.record import Provenance
from sordino.errors import UserError
from sordino.files import counted
from sordino.interventions import Dampening
from sordino.models.norms import norms_after_blocks
from sordino.models.open import empty_model
from sordino.models.reference import ModelRef
from sordino.models.sites import decoder_layers

FILE = "control-vector.gguf"
_ARCHITECTURE = "controlvector"
# The linear layer whose output joins the residual stream unchanged, by transformers' model type;
# llama.cpp's graph of each of these adds directions right after it.
_LAST_LINEAR = {
    **dict.fromkeys(
        ("llama", "mistral", "nemotron", "phi3", "qwen2", "qwen3", "stablelm"), "mlp.down_proj"
    ),
    **dict.fromkeys(("bloom", "falcon"), "mlp.dense_4h_to_h"),
    **dict.fromkeys(("gpt2", "starcoder2"), "mlp.c_proj"),
}
# Where llama.cpp uses another name.
_IN_LLAMA_CPP = {"mistral": "llama"}

Values = NDArray[np.float32]


def write(ref: ModelRef, dampening: Dampening, target: Path, dtype: str = "auto") -> Written:  # noqa: ARG001
    """Write the control vector into a folder.

    Args:
        ref: The model that it is for, a folder or a GGUF file.
        dampening: Shifts for its sites, and no factors.
        target: An empty folder.
        dtype: Ignored; the numbers are float32.

    Raises:
        UserError: The dampening does not fit the model, shifts nothing, or changes what no control
            vector can.
    """
    model = empty_model(ref)
    dampening.modules(model)
    found = directions(model, dampening)
    kind = model.config.get_text_config(decoder=True).model_type
    writer = gguf.GGUFWriter(target / FILE, _ARCHITECTURE)
    writer.add_string(f"{_ARCHITECTURE}.model_hint", _IN_LLAMA_CPP.get(kind, kind))
    writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(found))
    for layer, values in found.items():
        writer.add_tensor(f"direction.{layer}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written()


def directions(model: PreTrainedModel, dampening: Dampening) -> dict[int, Values]:
    """What shifts add to the residual stream after each layer, float32 [hidden], by layer.

    Args:
        model: The module tree.
        dampening: Shifts for its sites, and no factors.

    Raises:
        UserError: The dampening does anything else as well, or llama.cpp cannot add it there.
    """
    places, pattern = _places(model), _pattern(model)
    if scaled := [site for site, rows in dampening.rows.items() if rows]:
        raise UserError(
            f"{counted(len(scaled), 'site has', 'sites have')} factors other than 1 (such as "
            f"{scaled[0]}), and a control vector can only add: use `intervention=mean_shift` or "
            "`format=hooks`."
        )
    if elsewhere := [site for site in dampening.shifted if site not in places]:
        raise UserError(
            f"{counted(len(elsewhere), 'site is', 'sites are')} shifted (such as {elsewhere[0]}) "
            "whose outputs are not what a control vector is added to: find the expertise with "
            f"`sites='{pattern}'`, or use `format=hooks`."
        )
    found = {places[site]: dampening.shifts[site] for site in dampening.shifted}
    if 0 in found:
        raise UserError(
            "The edit shifts layer 0, for which llama.cpp's control vectors have no direction: "
            f"find the expertise with `sites='{pattern}'`, or use `format=hooks`."
        )
    if not found:
        raise UserError("All shifts are 0, so the control vector would be empty.")
    return {layer: np.ascontiguousarray(found[layer]) for layer in sorted(found)}


def _places(model: PreTrainedModel) -> dict[str, int]:
    """The sites at which a shift is a direction, each with its layer's number."""
    kind = model.config.get_text_config(decoder=True).model_type
    stack, layers = decoder_layers(model)
    if norms := [name for name, _ in norms_after_blocks(layers[0])]:
        raise UserError(
            f"In {type(model).__name__} a block's output passes a norm ({', '.join(norms)}) before "
            "it joins the residual stream, so a linear layer's shift is not a control vector: use "
            "`format=hooks`."
        )
    if kind not in _LAST_LINEAR:
        raise UserError(
            f"Control vectors are written for {', '.join(sorted(_LAST_LINEAR))}, and not for "
            f"{type(model).__name__}: use `format=hooks`."
        )
    return {f"{stack}.{layer}.{_LAST_LINEAR[kind]}": layer for layer in range(len(layers))}


def _pattern(model: PreTrainedModel) -> str:
    """The regular expression for the sites of all layers but the first."""
    kind = model.config.get_text_config(decoder=True).model_type
    last = _LAST_LINEAR[kind].replace(".", r"\.")
    return rf"\.[1-9]\d*\.{last}$"


def card(record: Provenance) -> str:
    """The README.md of the folder, with the line that loads the control vector."""
    return plain_card(record) + _USE


_USE = f"""
```
llama-server -m the-original-model.gguf --control-vector-scaled {FILE} 1
```

The scale is the strength, for every request alike: 0 is the original, 1 is the edit.
"""

FORMATS["control-vector"] = Format(
    "as a control vector for llama.cpp (no weights are here)", write, card, (FILE,)
)
