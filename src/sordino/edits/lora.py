"""A LoRA adapter that does what dampening does, without approximation.

Multiplying k rows of a matrix is a change of rank k: W' − W = Σ (αₘ − 1)·eₘ·wₘᵀ, one term for each
row m that changes. So A has the rows wₘ of the original, B has αₘ − 1 in the row of each neuron,
and the adapter at scale s is the dampening at strength s (up to 1; above it, factors can become
negative, which `Dampening.scaled` prevents). Biases change by (αₘ − 1)·bₘ and by shifts, for which
PEFT has `lora_bias`.

For a safetensors folder the adapter has PEFT's layout; for a GGUF file llama.cpp's, see
`gguf_lora`.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor
from transformers import Conv1D, PreTrainedModel

from sordino.edits import gguf_lora
from sordino.edits.adapters import CONFIG, WEIGHTS, refuse_without_adapter
from sordino.edits.formats import FORMATS, Format, Written
from sordino.edits.names import on_disk, parameters_of
from sordino.edits.provenance import plain_card
from sordino.edits.quantised import read_quantised
from sordino.edits.record import Provenance
from sordino.errors import UserError
from sordino.files import write_json
from sordino.interventions import Dampening
from sordino.interventions.dampening import by_neuron
from sordino.markdown import with_front
from sordino.models.open import empty_model
from sordino.models.reference import ModelRef
from sordino.models.streaming import StoredTensors
from sordino.progress import note

Values = NDArray[np.float32]


@dataclass(frozen=True)
class LowRank:
    """The change of one site, of as low a rank as it can have.

    Args:
        a: float32 [rank, inputs], the rows that change.
        b: float32 [neurons, rank], with one number in each column.
        bias: The change of its bias, float32 [neurons].
    """

    a: Values
    b: Values
    bias: Values

    @property
    def rank(self) -> int:
        """How many rows change, but at least 1, the smallest rank of an adapter."""
        return len(self.a)


def write_lora(
    ref: ModelRef,
    dampening: Dampening,
    target: Path,
    dtype: str = "auto",  # noqa: ARG001 (the numbers are float32)
) -> Written:
    """Write the adapter's files into a folder.

    Args:
        ref: The model that the adapter is for; its files are read, one tensor at a time.
        dampening: Factors for its sites.
        target: An empty folder.
        dtype: Ignored.

    Raises:
        UserError: The dampening changes nothing, does not fit the model, or changes what a LoRA
            cannot.
    """
    if not dampening.changed:
        raise UserError("All factors are 1, so the adapter would be empty.")
    if ref.kind == "gguf":
        gguf_lora.write(ref, dampening, target)
        return Written()
    model = empty_model(ref)
    changes = low_rank(ref, model, dampening)
    modules = dampening.modules(model)
    biased = any(change.bias.any() for change in changes.values())
    tensors: dict[str, Values] = {}
    for site, change in changes.items():
        name = f"base_model.model.{site}"
        tensors[f"{name}.lora_A.weight"] = change.a
        tensors[f"{name}.lora_B.weight"] = change.b
        if biased:
            tensors[f"{name}.lora_B.bias"] = change.bias
    # `save_file` would make it readable to its owner alone.
    (target / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
    rank = max(change.rank for change in changes.values())
    lower = {re.escape(s): change.rank for s, change in changes.items() if change.rank < rank}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": ref.name,
        "revision": ref.revision or None,
        "target_modules": _targets(model, changes),
        # The scale is alpha over rank, so these make it 1.
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": lower,
        "alpha_pattern": lower,
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": biased,
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": any(isinstance(modules[site], Conv1D) for site in changes),
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    write_json(target / CONFIG, config)
    _tell(changes, modules, rank, biased=biased)
    return Written()


def low_rank(ref: ModelRef, model: PreTrainedModel, dampening: Dampening) -> dict[str, LowRank]:
    """The changes of a folder's model by site, without sites that do not change.

    Args:
        ref: A safetensors folder; its rows are de-quantised where it is quantised.
        model: Its module tree.
        dampening: Factors for its sites.

    Raises:
        UserError: A site is a matrix of MoE experts, or is not in the files as rows.
    """
    modules = dampening.modules(model)
    rows = {site: np.flatnonzero(dampening.factors[site] != 1) for site in modules}
    changed = [site for site in modules if rows[site].size or site in dampening.shifted]
    refuse_without_adapter(modules, changed, "LoRA")
    stored = _Rows(ref, model, {site: modules[site] for site in changed})
    weights, biases = stored.weights(rows), stored.biases()
    found = {}
    for site in changed:
        factors, places = dampening.factors[site], rows[site]
        less = factors - np.float32(1)
        a = weights[site] if places.size else np.zeros((1, stored.inputs(site)), np.float32)
        b = np.zeros((factors.size, len(a)), np.float32)
        b[places, np.arange(places.size)] = less[places]
        bias = less * biases[site] if site in biases else np.zeros_like(factors)
        if site in dampening.shifts:
            bias = bias + dampening.shifts[site]
        found[site] = LowRank(a, b, bias.astype(np.float32))
    return found


class _Rows:
    """Rows of a folder's matrices, read where the checkpoint has them.

    A neuron's row is found by sending the neuron's number to the files in place of a factor; see
    `sordino.edits.names.on_disk`.

    Args:
        ref: The folder.
        model: Its module tree.
        modules: The modules of the sites that are asked for.
    """

    def __init__(self, ref: ModelRef, model: PreTrainedModel, modules: Mapping[str, Any]) -> None:
        self._sites, self._modules = list(modules), modules
        self._quantised = read_quantised(ref.path)
        self._stored = StoredTensors(ref)
        names = self._quantised.names if self._quantised else self._stored.empty.keys()
        neurons, owners = {}, {}
        for number, (site, module) in enumerate(modules.items(), start=1):
            size = self._neurons(site)
            weight, bias = parameters_of(site, module)
            own, count = torch.full((size,), float(number)), torch.arange(1.0, size + 1)
            neurons[weight], owners[weight] = by_neuron(module, count), by_neuron(module, own)
            if module.bias is not None:
                neurons[bias], owners[bias] = count, own
        self._places = on_disk(model, neurons, names, rest=0.0)
        self._owners = on_disk(model, owners, names, rest=0.0)

    def inputs(self, site: str) -> int:
        """How many inputs a site has."""
        shape = self._modules[site].weight.shape
        return int(shape[0] if isinstance(self._modules[site], Conv1D) else shape[1])

    def weights(self, rows: Mapping[str, NDArray[np.int64]]) -> dict[str, Values]:
        """The rows of these neurons by site, float32 [neurons asked for, inputs]."""
        found: defaultdict[str, dict[int, Values]] = defaultdict(dict)
        wanted = {site: set(neurons.tolist()) for site, neurons in rows.items()}
        for name, site, neurons, lines in self._parts(dimensions=2):
            here = [n for n, neuron in enumerate(neurons) if neuron in wanted[site]]
            if here:
                values = self._matrix(name, turned=isinstance(self._modules[site], Conv1D))
                for n in here:
                    found[site][neurons[n]] = values[lines[n]].to(torch.float32).numpy()
        return {
            site: np.stack([found[site][neuron] for neuron in neurons.tolist()])
            for site, neurons in rows.items()
            if neurons.size
        }

    def biases(self) -> dict[str, Values]:
        """The biases of the sites that have one, float32 [neurons]."""
        found: dict[str, Values] = {}
        for name, site, neurons, lines in self._parts(dimensions=1):
            values = found.setdefault(site, np.zeros(self._neurons(site), np.float32))
            values[neurons] = self._stored[name][...][lines].to(torch.float32).numpy()
        return found

    def _parts(self, dimensions: int) -> Iterator[tuple[str, str, list[int], list[int]]]:
        """Each tensor's name with one of its sites, that site's neurons, and their rows there."""
        for name, numbers in self._places.items():
            if numbers.dim() != dimensions:
                continue
            neurons, owners = numbers.flatten(), self._owners[name].flatten()
            for number in owners.unique().int().tolist():
                lines = (owners == number).nonzero().flatten()
                if number:
                    site = self._sites[number - 1]
                    yield name, site, (neurons[lines].long() - 1).tolist(), lines.tolist()

    def _matrix(self, name: str, *, turned: bool) -> Tensor:
        """A tensor of the files as [neurons, inputs], de-quantised."""
        if self._quantised and name in self._quantised.layers:
            return self._quantised.scheme.rows(self._quantised.layers[name])
        values = self._stored[name][...]
        return values.T if turned else values

    def _neurons(self, site: str) -> int:
        shape = self._modules[site].weight.shape
        return int(shape[1] if isinstance(self._modules[site], Conv1D) else shape[0])


def _targets(model: PreTrainedModel, sites: Mapping[str, Any]) -> list[str]:
    """The shortest names that match these modules and no others; servers support those best."""
    ends = sorted({site.rpartition(".")[2] for site in sites})
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends}
    return ends if meant == set(sites) else list(sites)


def _tell(
    changes: Mapping[str, LowRank], modules: Mapping[str, Any], rank: int, *, biased: bool
) -> None:
    least = min(change.rank for change in changes.values())
    if least < rank:
        note(
            f"the matrices have ranks from {least} to {rank} (rank_pattern): PEFT supports that, "
            "and some servers do not (SGLang and TGI want one rank for all)."
        )
    if biased:
        note("biases change, which only PEFT supports (lora_bias): no server loads this adapter.")
        if without := [site for site in changes if modules[site].bias is None]:
            note(
                f"{len(without)} sites (such as {without[0]}) have no bias: PEFT runs the adapter "
                "and cannot merge it."
            )


def card(record: Provenance) -> str:
    """The README.md of an adapter's folder, with the lines that load it."""
    front: dict[str, Any] = {"tags": ["lora", "sordino"]}
    if record.model.revision:  # only a model of the hub has a name there
        front["base_model"] = record.model.name
    if record.model.kind == "gguf":
        return with_front(front, plain_card(record) + _USE_GGUF)
    return with_front({"library_name": "peft", **front}, plain_card(record) + _USE)


_USE = """
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("the original model")
model = PeftModel.from_pretrained(model, "this folder")
```

The scale of the adapter is the strength: 0 is the original, 1 is the edit.
"""
_USE_GGUF = f"""
```
llama-server -m the-original-model.gguf --lora {gguf_lora.FILE}
```

A request sets the strength, `"lora": [{{"id": 0, "scale": 0.5}}]`: 0 is the original, 1 the edit.
"""

FORMATS["lora"] = Format(
    "as a LoRA adapter (no weights are here)",
    write_lora,
    card,
    (WEIGHTS, gguf_lora.FILE),
    is_ranked=True,
)
