"""Tiny quantised checkpoints, made by the documented layouts, and what they stand for.

Everything here is written for the tests alone and shares no code with what it tests: codes are
taken from words as Python's whole numbers, one by one, and products are of float64.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from families import tiny_folder

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Made:
    """One way of quantising.

    Args:
        settings: For config.json.
        quantise: From a weight [neurons, inputs] to tensors by suffix.
        reference: From the tensors back to float64 [neurons, inputs].
        needs: The packages without which transformers does not load it.
    """

    settings: dict[str, Any]
    quantise: Callable[[torch.Tensor], Tensors]
    reference: Callable[[Tensors], np.ndarray]
    needs: tuple[str, ...] = ()


def words_of(codes: np.ndarray, bits: int) -> torch.Tensor:
    """[rows, count] codes as [rows, words] int32, a row one long little-endian number."""
    count = -(-codes.shape[1] * bits // 32)
    rows = []
    for row in codes.tolist():
        number = sum(int(code) << (bits * k) for k, code in enumerate(row))
        rows.append([(number >> (32 * k)) & 0xFFFFFFFF for k in range(count)])
    return torch.from_numpy(np.array(rows, dtype=np.uint32).reshape(-1, count).view(np.int32))


def codes_of(words: torch.Tensor, bits: int, count: int) -> np.ndarray:
    """The way back."""
    rows = []
    for row in words.numpy().astype(np.int64).tolist():
        number = sum((word & 0xFFFFFFFF) << (32 * k) for k, word in enumerate(row))
        rows.append([(number >> (bits * k)) & (2**bits - 1) for k in range(count)])
    return np.array(rows)


def _affine(weight: torch.Tensor, group: np.ndarray, bits: int, dtype: torch.dtype) -> Any:
    """Codes, scales and zero points [neurons, groups], by rounding to the nearest."""
    groups = int(group.max()) + 1
    scales = torch.empty(len(weight), groups)
    zeros = torch.empty(len(weight), groups)
    for g in range(groups):
        part = weight[:, group == g]
        low = part.amin(1).clamp(max=0)
        high = part.amax(1).clamp(min=0)
        scales[:, g] = ((high - low) / (2**bits - 1)).clamp(min=1e-6).to(dtype).float()
        zeros[:, g] = (-low / scales[:, g]).round().clamp(0, 2**bits - 1)
    codes = (weight / scales[:, group] + zeros[:, group]).round().clamp(0, 2**bits - 1)
    return codes.int().numpy(), scales.to(dtype), zeros.int().numpy()


def gptq(
    bits: int = 4,
    size: int = 16,
    *,
    act_order: bool = False,
    version: int = 1,
    dtype: torch.dtype = torch.float16,
) -> Made:
    """GPTQ of either format."""

    def group_of(inputs: int) -> np.ndarray:
        group = np.arange(inputs) // (size if size > 0 else inputs)
        return np.random.default_rng(0).permutation(group) if act_order else group

    def quantise(weight: torch.Tensor) -> Tensors:
        group = group_of(weight.shape[1])
        codes, scales, zeros = _affine(weight, group, bits, dtype)
        stored = (zeros - 1) % 2**bits if version == 1 else zeros
        return {
            "qweight": words_of(codes, bits).T.contiguous(),
            "qzeros": words_of(stored.T, bits),
            "scales": scales.T.contiguous(),
            "g_idx": torch.from_numpy(group.astype(np.int32)),
        }

    def reference(tensors: Tensors) -> np.ndarray:
        scales = tensors["scales"].double().numpy()
        inputs, neurons = len(tensors["g_idx"]), scales.shape[1]
        codes = codes_of(tensors["qweight"].T.contiguous(), bits, inputs)
        zeros = codes_of(tensors["qzeros"], bits, neurons)
        if version == 1:
            zeros = (zeros + 1) % 2**bits
        group = tensors["g_idx"].numpy()
        return (scales[group] * (codes.T - zeros[group])).T

    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": size,
        "desc_act": act_order,
        "sym": False,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }
    return Made(settings, quantise, reference, ("gptqmodel", "optimum"))


_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def awq(layout: str = "gemm", size: int = 16) -> Made:
    """AWQ of 4 bits."""

    def woven(codes: np.ndarray) -> np.ndarray:
        return codes.reshape(len(codes), -1, 8)[..., _AWQ_ORDER].reshape(codes.shape)

    def unwoven(codes: np.ndarray) -> np.ndarray:
        return codes.reshape(len(codes), -1, 8)[..., np.argsort(_AWQ_ORDER)].reshape(codes.shape)

    def quantise(weight: torch.Tensor) -> Tensors:
        group = np.arange(weight.shape[1]) // size
        codes, scales, zeros = _affine(weight, group, 4, torch.float16)
        if layout == "gemm":
            return {
                "qweight": words_of(woven(codes.T), 4),
                "qzeros": words_of(woven(zeros.T), 4),
                "scales": scales.T.contiguous(),
            }
        padding = -zeros.shape[1] % 8
        return {
            "qweight": words_of(codes, 4),
            "qzeros": words_of(np.pad(zeros, ((0, 0), (0, padding))), 4),
            "scales": torch.nn.functional.pad(scales, (0, padding)),
        }

    def reference(tensors: Tensors) -> np.ndarray:
        scales = tensors["scales"].double().numpy()
        if layout == "gemm":
            codes = unwoven(codes_of(tensors["qweight"], 4, scales.shape[1]))
            zeros = unwoven(codes_of(tensors["qzeros"], 4, scales.shape[1]))
            group = np.arange(len(codes)) // size
            return (scales[group] * (codes - zeros[group])).T
        inputs = tensors["qweight"].shape[1] * 8
        codes = codes_of(tensors["qweight"], 4, inputs)
        zeros = codes_of(tensors["qzeros"], 4, scales.shape[1])
        group = np.arange(inputs) // size
        return scales[:, group] * (codes - zeros[:, group])

    settings = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": size,
        "zero_point": True,
        "version": layout,
    }
    return Made(settings, quantise, reference, ("gptqmodel",))


def compressed_tensors(
    kind: str = "int",
    strategy: str = "channel",
    bits: int = 8,
    size: int | None = None,
    *,
    symmetric: bool = True,
    packed: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> Made:
    """Integers as they are or packed, and FP8."""
    block = (16, 32)
    largest = 448.0 if kind == "float" else 2.0 ** (bits - 1) - 1

    def parts(shape: Any) -> np.ndarray:
        """Which scale, of a grid, each weight has: [neurons, inputs] of (row, column)."""
        rows, columns = np.indices(shape)
        if strategy == "tensor":
            return np.stack((rows * 0, columns * 0))
        if strategy == "channel":
            return np.stack((rows, columns * 0))
        if strategy == "group":
            return np.stack((rows, columns // size))
        return np.stack((rows // block[0], columns // block[1]))

    def quantise(weight: torch.Tensor) -> Tensors:
        row, column = parts(weight.shape)
        grid = torch.zeros(row.max() + 1, column.max() + 1)
        for r in range(len(grid)):
            for c in range(grid.shape[1]):
                here = weight[torch.from_numpy((row == r) & (column == c))]
                span = here.abs().max() if symmetric else here.max() - here.min()
                grid[r, c] = span / (largest if symmetric else 2 * largest)
        scales = grid.to(dtype)
        spread = scales.float()[row, column]
        if kind == "float":
            codes = (weight / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
            stored = scales.reshape(1) if strategy == "tensor" else scales
            return {"weight": codes, "weight_scale": stored}
        tensors: Tensors = {}
        zeros = torch.zeros_like(grid)
        if not symmetric:
            for r in range(len(grid)):
                for c in range(grid.shape[1]):
                    here = weight[torch.from_numpy((row == r) & (column == c))]
                    zeros[r, c] = (-largest - 1 - here.min() / scales[r, c].float()).round()
            zeros = zeros.clamp(-largest - 1, largest)
        codes = (weight / spread + zeros[row, column]).round().clamp(-largest - 1, largest)
        offset = 2 ** (bits - 1)
        if packed:
            tensors["weight_packed"] = words_of((codes + offset).int().numpy(), bits)
            tensors["weight_shape"] = torch.tensor(weight.shape)
            if not symmetric:
                shifted = (zeros + offset).int().numpy().T
                tensors["weight_zero_point"] = words_of(shifted, bits).T.contiguous()
        else:
            tensors["weight"] = codes.to(torch.int8)
            if not symmetric:
                tensors["weight_zero_point"] = zeros.to(torch.int8)
        tensors["weight_scale"] = scales.reshape(1) if strategy == "tensor" else scales
        return tensors

    def reference(tensors: Tensors) -> np.ndarray:
        scales = tensors["weight_scale"].double().numpy()
        if "weight_packed" in tensors:
            neurons, inputs = tensors["weight_shape"].tolist()
            codes = codes_of(tensors["weight_packed"], bits, inputs) - 2.0 ** (bits - 1)
        else:
            codes = tensors["weight"].double().numpy()
            neurons, inputs = codes.shape
        if scales.shape == (neurons, 1):
            row, column = np.indices(codes.shape) * np.array([1, 0])[:, None, None]
        else:
            scales = scales.reshape(1, 1) if scales.size == 1 else scales
            row, column = parts(codes.shape)
        if "weight_zero_point" not in tensors:
            return codes * scales[row, column]
        if packed:
            zeros = codes_of(tensors["weight_zero_point"].T.contiguous(), bits, neurons).T
            zeros = zeros - 2.0 ** (bits - 1)
        else:
            zeros = tensors["weight_zero_point"].double().numpy()
        return (codes - zeros[row, column]) * scales[row, column]

    weights: dict[str, Any] = {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": size,
        "dynamic": False,
    }
    if strategy == "block":
        weights["block_structure"] = list(block)
    inputs = None
    if not packed:
        inputs = {
            "num_bits": 8,
            "type": kind,
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
    form = "pack-quantized" if packed else f"{kind}-quantized"
    settings = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
        },
    }
    return Made(settings, quantise, reference, ("compressed_tensors",))


def fp8(block: tuple[int, int] | None = (16, 32), scales: torch.dtype = torch.float32) -> Made:
    """FP8 as DeepSeek's, in blocks; with None one scale a weight; (1, 0) one a neuron (fbgemm)."""
    rows_alone = block == (1, 0)
    name = "weight_scale" if rows_alone else "weight_scale_inv"

    def sizes(shape: Any) -> tuple[int, int]:
        if block is None:
            return shape[0], shape[1]
        return (1, shape[1]) if rows_alone else block

    def quantise(weight: torch.Tensor) -> Tensors:
        down, across = sizes(weight.shape)
        grid = torch.zeros(-(-weight.shape[0] // down), -(-weight.shape[1] // across))
        codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        for r in range(len(grid)):
            for c in range(grid.shape[1]):
                at = np.s_[r * down : (r + 1) * down, c * across : (c + 1) * across]
                step = weight[at].abs().max() / 448
                if scales == torch.float8_e8m0fnu:
                    step = torch.exp2(torch.ceil(torch.log2(step)))
                grid[r, c] = step.to(scales).float()
                codes[at] = (weight[at] / grid[r, c]).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored = grid.reshape(()) if block is None else grid
        return {"weight": codes, name: stored.to(scales)}

    def reference(tensors: Tensors) -> np.ndarray:
        codes = tensors["weight"].double().numpy()
        grid = tensors[name].double().numpy()
        grid = grid.reshape(1, 1) if grid.size == 1 else grid
        down, across = sizes(codes.shape)
        row, column = np.indices(codes.shape)
        return codes * grid[row // down, column // across]

    settings: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    if rows_alone:
        settings = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
    else:
        settings["weight_block_size"] = list(block) if block else None
    return Made(settings, quantise, reference)


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def fp4(kind: str) -> Made:
    """4-bit floats: compressed-tensors' two ("nvfp4", "mxfp4"), ModelOpt's, DeepSeek V4's."""
    powers = kind in ("mxfp4", "deepseek")
    size = 32 if powers else 16
    codes_at = "weight" if kind in ("modelopt", "deepseek") else "weight_packed"
    scales_at = "scale" if kind == "deepseek" else "weight_scale"
    shared_at = {"nvfp4": "weight_global_scale", "modelopt": "weight_scale_2"}.get(kind)

    def quantise(weight: torch.Tensor) -> Tensors:
        blocks = weight.double().reshape(len(weight), -1, size)
        tops = blocks.abs().amax(2).clamp(min=1e-9)
        found: Tensors = {}
        if powers:
            exponents = torch.floor(torch.log2(tops)) - 2
            steps = torch.exp2(exponents)
            stored = (exponents + 127).to(torch.uint8)
            if kind == "deepseek":
                stored = stored.view(torch.float8_e8m0fnu)
        else:
            whole = float(blocks.abs().max()) / (448 * 6)
            shared = torch.tensor(whole if kind == "modelopt" else 1 / whole)
            found[shared_at] = shared if kind == "modelopt" else shared.reshape(1)
            stored = (tops / 6 / whole).float().to(torch.float8_e4m3fn)
            steps = stored.double() * whole
        ratio = blocks / steps[..., None].clamp(min=1e-30)
        nearest = (ratio.abs()[..., None] - torch.tensor(E2M1)).abs().argmin(-1)
        codes = (nearest + 8 * (ratio < 0)).reshape(len(weight), -1, 2).to(torch.uint8)
        packed = codes[..., 0] | codes[..., 1] << 4
        packed = packed.view(torch.int8) if kind == "deepseek" else packed
        return {codes_at: packed, scales_at: stored, **found}

    def reference(tensors: Tensors) -> np.ndarray:
        values = []
        for byte in tensors[codes_at].contiguous().view(torch.uint8).flatten().tolist():
            codes = byte & 15, byte >> 4
            values.extend(-E2M1[code & 7] if code & 8 else E2M1[code] for code in codes)
        steps = fp4_steps(tensors[scales_at])
        if shared_at:
            shared = tensors[shared_at].double().item()
            steps = steps / shared if kind == "nvfp4" else steps * shared
        weights = np.array(values).reshape(*steps.shape, size) * steps[..., None]
        return weights.reshape(len(steps), -1)

    group = {"num_bits": 4, "type": "float", "symmetric": True, "group_size": size}
    settings: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": f"{kind}-pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": group
                | {"strategy": "group" if powers else "tensor_group", "dynamic": False},
                "input_activations": None,
            }
        },
    }
    if kind == "modelopt":
        settings = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
    elif kind == "deepseek":
        settings = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    return Made(settings, quantise, reference, ("compressed_tensors",))


def fp4_steps(scales: torch.Tensor) -> np.ndarray:
    """What block scales stand for."""
    if scales.dtype in (torch.uint8, torch.float8_e8m0fnu):
        return 2.0 ** (scales.view(torch.uint8).double().numpy() - 127)
    return scales.double().numpy()


def fp4_grid(tensors: Tensors) -> tuple[int, np.ndarray]:
    """How many weights share a scale, and every scale that one could have."""
    scales = tensors.get("weight_scale", tensors.get("scale"))
    assert scales is not None
    if scales.dtype != torch.float8_e4m3fn:
        return 32, 2.0 ** np.arange(-127, 128)
    every = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    if "weight_scale_2" in tensors:
        return 16, every * tensors["weight_scale_2"].double().item()
    return 16, every / tensors["weight_global_scale"].double().item()


def gpt_oss_folder(tmp_path: Path) -> Path:
    """A tiny gpt-oss with its experts as the published checkpoints have them."""
    folder = tiny_folder(
        "gpt_oss", tmp_path, dtype=torch.bfloat16, hidden_size=64, intermediate_size=96
    )
    tensors: Tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if tensor.dim() == 3:
            made = fp4("mxfp4").quantise(tensor.float().transpose(1, 2).flatten(0, 1))
            experts, inputs, neurons = tensor.shape
            blocks = experts, neurons, inputs // 32
            tensors[f"{name}_blocks"] = made["weight_packed"].reshape(*blocks, 16)
            tensors[f"{name}_scales"] = made["weight_scale"].reshape(blocks)
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def gpt_oss_reference(tensors: Tensors, site: str) -> np.ndarray:
    """A matrix of experts as what it stands for: float64 [neurons of all experts, inputs]."""
    scales = tensors[f"{site}_scales"]
    codes = tensors[f"{site}_blocks"].flatten(2).flatten(0, 1)
    return fp4("mxfp4").reference({"weight_packed": codes, "weight_scale": scales.flatten(0, 1)})


def int8() -> Made:
    """bitsandbytes of 8 bits."""

    def quantise(weight: torch.Tensor) -> Tensors:
        largest = weight.abs().amax(1)
        return {
            "weight": (weight / largest[:, None] * 127).round().to(torch.int8),
            "SCB": largest,
            "weight_format": torch.tensor(0, dtype=torch.uint8),
        }

    def reference(tensors: Tensors) -> np.ndarray:
        return tensors["weight"].double().numpy() * tensors["SCB"].double().numpy()[:, None] / 127

    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
    return Made(settings, quantise, reference, ("bitsandbytes",))


# The sixteen values of nf4: quantiles of a normal distribution, as the QLoRA paper lists them.
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def four_bit(block: int = 32, *, nested: bool = False, kind: str = "nf4", outer: int = 4) -> Made:
    """bitsandbytes of 4 bits; nested, `outer` blocks are a block of blocks."""
    table = torch.tensor(_NF4 if kind == "nf4" else sorted(_NF4, key=abs))

    def quantise(weight: torch.Tensor) -> Tensors:
        flat = weight.reshape(-1)
        padded = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
        absmax = padded.abs().amax(1)
        state: dict[str, Any] = {
            "quant_type": kind,
            "blocksize": block,
            "dtype": "bfloat16",
            "shape": list(weight.shape),
        }
        tensors: Tensors = {"weight.quant_map": table.clone()}
        if nested:
            offset = float(absmax.mean())
            blocks = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % outer))
            largest = blocks.view(-1, outer).abs().amax(1).clamp(min=1e-6)
            nested_map = torch.linspace(-1, 1, 256)
            scaled = blocks.view(-1, outer) / largest[:, None]
            codes = (scaled[..., None] - nested_map).abs().argmin(-1).reshape(-1)[: len(absmax)]
            tensors["weight.absmax"] = codes.to(torch.uint8)
            tensors["weight.nested_absmax"] = largest
            tensors["weight.nested_quant_map"] = nested_map
            state |= {
                "nested_blocksize": outer,
                "nested_dtype": "float32",
                "nested_offset": offset,
            }
            absmax = nested_map[codes] * largest.repeat_interleave(outer)[: len(codes)] + offset
        else:
            tensors["weight.absmax"] = absmax
        codes = (padded / absmax[:, None])[..., None].sub(table).abs().argmin(-1).reshape(-1)
        codes = torch.nn.functional.pad(codes[: len(flat)], (0, len(flat) % 2)).view(-1, 2)
        packed = (codes[:, 0] << 4 | codes[:, 1]).to(torch.uint8)
        text = json.dumps(state).encode()
        return tensors | {
            "weight": packed[:, None],
            f"weight.quant_state.bitsandbytes__{kind}": torch.tensor(list(text), dtype=torch.uint8),
        }

    def reference(tensors: Tensors) -> np.ndarray:
        name = next(name for name in tensors if "quant_state" in name)
        state = json.loads(bytes(tensors[name].tolist()))
        packed = tensors["weight"].numpy().reshape(-1)
        codes = np.stack((packed >> 4, packed & 15), 1).reshape(-1)[: np.prod(state["shape"])]
        absmax = tensors["weight.absmax"].double().numpy()
        if "nested_blocksize" in state:
            steps = tensors["weight.nested_absmax"].double().numpy()
            values = tensors["weight.nested_quant_map"].double().numpy()[absmax.astype(int)]
            absmax = np.array(
                [v * steps[k // state["nested_blocksize"]] for k, v in enumerate(values)]
            )
            absmax = absmax + state["nested_offset"]
        values = tensors["weight.quant_map"].double().numpy()[codes]
        return (values * absmax[np.arange(len(codes)) // state["blocksize"]]).reshape(
            state["shape"]
        )

    settings = {
        "quant_method": "bitsandbytes",
        "load_in_8bit": False,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": nested,
        "bnb_4bit_compute_dtype": "float32",
    }
    return Made(settings, quantise, reference, ("bitsandbytes",))


def quantised_copy(
    folder: Path, target: Path, made: Made, *, shards: int = 1, transposed: bool = False
) -> Path:
    """A copy of a model's folder with the linear layers of its decoder quantised.

    Args:
        folder: A tiny model, its weights in one file.
        target: The folder to make.
        made: How to quantise.
        shards: Over how many files to spread the tensors, layers torn apart.
        transposed: Whether the weights are [inputs, neurons], as GPT-2's are.
    """
    target.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    tensors: Tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if re.search(r"\.\d+\..*(proj|c_fc|c_attn)\.weight$", name):
            weight = tensor.float().T if transposed else tensor.float()
            for suffix, part in made.quantise(weight).items():
                tensors[f"{name.removesuffix('weight')}{suffix}"] = part.contiguous()
        else:
            tensors[name] = tensor
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = made.settings
    (target / "config.json").write_text(json.dumps(config))
    save_shards(target, tensors, shards)
    return target


def save_shards(folder: Path, tensors: Tensors, shards: int = 1) -> None:
    """Write tensors to a folder, dealt out to its shards one by one."""
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
        return
    places = {name: number % shards for number, name in enumerate(tensors)}
    files = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    for number, file in enumerate(files):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == number}
        save_file(part, folder / file, metadata=metadata)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: files[number] for name, number in places.items()},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def quantised_folder_of(
    made: Made, tmp_path: Path, *, shards: int = 1, family: str = "llama_biased"
) -> Path:
    """A tiny model, by default a Llama with biases, quantised."""
    folder = tmp_path / family
    if not folder.exists():
        sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}
        if family == "gpt2":
            sizes = {"n_embd": 64}
        tiny_folder(family, tmp_path, dtype=torch.bfloat16, **sizes)
    target = tmp_path / f"quantised{len(list(tmp_path.iterdir()))}"
    return quantised_copy(folder, target, made, shards=shards, transposed=family == "gpt2")


def tensors_of(folder: Path) -> Tensors:
    """All tensors of a folder's shards."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def layer_of(tensors: Tensors, name: str) -> Tensors:
    """One layer's tensors by suffix."""
    return {
        key.removeprefix(f"{name}."): tensor
        for key, tensor in tensors.items()
        if key.startswith(f"{name}.")
    }
