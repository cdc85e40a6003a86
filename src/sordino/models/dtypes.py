"""The one table of dtypes in model files: names, sizes and rounding errors.

Files name dtypes as the safetensors format does ("BF16"), arguments as torch does ("bfloat16").
"""

import torch

from sordino.errors import UserError

TORCH_DTYPES = {
    **{"BOOL": torch.bool, "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32},
    **{"U64": torch.uint64, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32},
    **{"I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32},
    **{"F64": torch.float64, "C64": torch.complex64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz},
    **{"F8_E5M2": torch.float8_e5m2, "F8_E5M2FNUZ": torch.float8_e5m2fnuz},
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""By the safetensors format's name of a type, torch's."""

BITS = {name: 8 * dtype.itemsize for name, dtype in TORCH_DTYPES.items()} | {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},  # torch has no such types
}
"""By the format's name, the bits that a number takes in a file."""

PLAIN = {name: TORCH_DTYPES[name] for name in ("F64", "F32", "F16", "BF16")}
"""The types of weights that are not quantised."""

SCALED = PLAIN | {name: TORCH_DTYPES[name] for name in ("F8_E4M3", "F8_E8M0")}
"""These, and the 8-bit types of quantised weights and scales that can be multiplied."""

COMPUTE_DTYPES = {
    str(PLAIN[name]).removeprefix("torch."): PLAIN[name] for name in ("F32", "BF16", "F16")
}
"""By torch's name, the types in which a model can be opened."""


def torch_dtype(name: str, tensor: str) -> torch.dtype:
    """Torch's type for the format's name of it; `tensor` is for the message.

    Raises:
        UserError: Torch has no such type.

    Example:
        >>> torch_dtype("BF16", "lm_head.weight")
        torch.bfloat16
    """
    if name not in TORCH_DTYPES:
        raise UserError(f"The tensor {tensor} has an unknown type, {name}.")
    return TORCH_DTYPES[name]


def name_of(dtype: torch.dtype) -> str:
    """The format's name for one of torch's types.

    Example:
        >>> name_of(torch.float8_e4m3fn)
        'F8_E4M3'
    """
    return next(name for name, ours in TORCH_DTYPES.items() if ours == dtype)


def rounding_unit(name: str) -> float | None:
    """The largest relative error of a number rounded to a floating type; None for other types.

    For F8_E8M0, whose numbers are powers of two, it is that of the F8_E4M3 codes beside it, which
    absorb what the scale cannot hold.

    Example:
        >>> rounding_unit("BF16") == 2**-8
        True
    """
    dtype = TORCH_DTYPES["F8_E4M3" if name == "F8_E8M0" else name] if name in TORCH_DTYPES else None
    return torch.finfo(dtype).eps / 2 if dtype is not None and dtype.is_floating_point else None


def smallest_error(name: str) -> float:
    """The largest absolute error of a number that is too small for `rounding_unit` to apply.

    It is half the smallest number above zero; 0 for types that are not floating.

    Example:
        >>> smallest_error("F16") == 2**-25
        True
    """
    dtype = TORCH_DTYPES.get(name)
    if dtype is None or not dtype.is_floating_point:
        return 0.0
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2
