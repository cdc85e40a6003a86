"""A LoRA adapter in a GGUF file, as llama.cpp loads it.

It has the tensors of one GGUF file, rows in that file's own order, so nothing is permuted. MoE
experts have a pair of matrices each, all of the same rank.
"""

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from sordino.edits.gguf_file import plan
from sordino.errors import UserError
from sordino.interventions import Dampening
from sordino.models.gguf_header import Header, Stored
from sordino.models.reference import ModelRef

FILE = "adapter.gguf"
# llama.cpp multiplies by alpha over the rank, tensor by tensor, unless alpha is 0.
_NO_ALPHA = 0.0

Values = NDArray[np.float32]


def write(ref: ModelRef, dampening: Dampening, target: Path) -> None:
    """Write the adapter for a GGUF file into a folder.

    Raises:
        UserError: The dampening does not fit the file, or changes biases.
    """
    edit = plan(ref, dampening)
    if edit.added or any(name.endswith(".bias") for name in edit.changes):
        changed = [*edit.added, *(name for name in edit.changes if name.endswith(".bias"))]
        raise UserError(
            f"The edit changes biases of {ref.path} (such as {changed[0]}), and llama.cpp's LoRA "
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

    Args:
        header: The file's.
        stored: The tensor.
        scales: Of its rows.

    Returns:
        float32 [rank, inputs] and [rows, rank]; of experts, [experts, …] of each.
    """
    *experts, rows, inputs = stored.shape
    by_matrix = scales.reshape(-1, rows)
    rank = int((by_matrix != 1).sum(axis=1).max())
    a = np.zeros((len(by_matrix), rank, inputs), np.float32)
    b = np.zeros((len(by_matrix), rows, rank), np.float32)
    data = header.rows(stored).reshape(len(by_matrix), rows, -1)
    for matrix, of_rows in enumerate(by_matrix):
        changed = np.flatnonzero(of_rows != 1)
        kind = gguf.GGMLQuantizationType[stored.kind]
        if changed.size:
            a[matrix, : changed.size] = gguf.dequantize(data[matrix, changed], kind)
        b[matrix, changed, np.arange(changed.size)] = of_rows[changed] - np.float32(1)
    return (a, b) if experts else (a[0], b[0])
