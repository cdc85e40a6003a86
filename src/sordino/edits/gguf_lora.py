"""A LoRA adapter in a GGUF file, as llama.cpp loads it.

It has the tensors of one GGUF file, rows in that file's own order, so nothing is permuted. MoE
experts have a pair of matrices each, all of the same rank.
"""

from pathlib import Path

import gguf
import numpy as np

from sordino.edits import low_rank
from sordino.edits.gguf_file import plan
from sordino.edits.low_rank import Values
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.gguf_header import Header, Stored
from sordino.models.reference import ModelRef

FILE = "adapter.gguf"
# llama.cpp multiplies by alpha over the rank, tensor by tensor, unless alpha is 0.
_NO_ALPHA = 0.0


def write(ref: ModelRef, dampening: Dampening, target: Path) -> None:
    """Write the adapter for a GGUF file into a folder.

    Raises:
        UserError: The dampening does not fit the file, or changes biases or norms.
    """
    edit = plan(ref, dampening)
    if edit.added or any(name.endswith(".bias") for name in edit.changes):
        changed = [*edit.added, *(name for name in edit.changes if name.endswith(".bias"))]
        raise UserError(
            f"The edit changes biases of {ref.path} (such as {changed[0]}), and llama.cpp's LoRA "
            "adapters have none: bake it to a file (`output` with .gguf)."
        )
    norms = [name for name in edit.changes if len(edit.header.tensors[name].shape) < 2]
    if norms:
        raise UserError(
            f"The edit changes norms of {ref.path} (such as {norms[0]}), and llama.cpp's LoRA "
            "adapters have none: bake it to a file (`output` with .gguf)."
        )
    writer = gguf.GGUFWriter(target / FILE, edit.header.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, _NO_ALPHA)
    for name, change in edit.changes.items():
        a, b = pair(edit.header, edit.header.tensors[name], change.scales)
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pair(header: Header, stored: Stored, scales: Values) -> tuple[Values, Values]:
    """The two matrices whose product is the change of a tensor's rows.

    Returns:
        float32 [rank, inputs] and [rows, rank]; of experts, [experts, …] of each.
    """
    *experts, rows, _ = stored.shape
    changed = np.flatnonzero(scales.reshape(-1) != 1)
    data = header.rows(stored).reshape(scales.size, -1)[changed]
    of_rows = gguf.dequantize(data, gguf.GGMLQuantizationType[stored.kind])
    a, b = low_rank.pair(scales.reshape(-1, rows), of_rows)
    return (a, b) if experts else (a[0], b[0])
