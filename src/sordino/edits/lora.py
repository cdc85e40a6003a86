"""A LoRA adapter that does what dampening does, without approximation.

Multiplying k rows of a matrix is a change of rank k: W' − W = Σ (αₘ − 1)·eₘ·wₘᵀ, one term for each
row m that changes. So A has the rows wₘ of the original, B has αₘ − 1 in the row of each neuron,
and the adapter at scale s is the dampening at strength s (up to 1; above it, factors can become
negative, which `Dampening.scaled` prevents). Biases change by (αₘ − 1)·bₘ and by shifts, for which
PEFT has `lora_bias`.

For a safetensors folder the adapter has PEFT's layout; for a GGUF file llama.cpp's, see
`gguf_lora`.

The matrices of MoE experts are one parameter, which PEFT adapts by its name, with one pair of
matrices per expert (`target_parameters`, its `ParamWrapper`). All others are then named by their
parameters, too, because in models with experts PEFT takes modules named `gate_proj` for parts of
these.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Conv1D, PreTrainedModel

from sordino.edits import gguf_lora, peft_layout
from sordino.edits.formats import FORMATS, Format, Written
from sordino.edits.low_rank import Values, pair
from sordino.edits.names import on_disk, parameters_of
from sordino.edits.provenance import plain_card
from sordino.edits.quantised import read_quantised
from sordino.edits.record import Provenance
from sordino.errors import UserError
from sordino.files import counted
from sordino.interventions import Dampening
from sordino.interventions.dampening import by_bias, by_neuron
from sordino.markdown import with_front
from sordino.models.checkpoint import quantisation_of
from sordino.models.experts import ExpertMatrix, expert_matrices
from sordino.models.open import empty_model
from sordino.models.reference import ModelRef
from sordino.models.streaming import StoredTensors
from sordino.models.transformers_internals import Conversions
from sordino.progress import note

# The last names of experts' matrices, and of the modules that PEFT takes for parts of them.
_LIKE_EXPERTS = {*("gate_up_proj", "gate_proj", "up_proj", "down_proj"), *("w1", "w2", "w3")}


@dataclass(frozen=True)
class LowRank:
    """The change of one site, of as low a rank as it can have.

    Args:
        a: float32 [matrices, rank, inputs], the rows that change; one matrix for a linear layer,
            one per MoE expert, filled with zeros up to the rank of the one that changes most.
        b: float32 [matrices, neurons, rank], with one number in each column.
        bias: The change of its bias, float32 [neurons].
    """

    a: Values
    b: Values
    bias: Values

    @property
    def rank(self) -> int:
        """How many rows of a matrix change, but at least 1, the smallest rank of an adapter."""
        return self.a.shape[1]


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
    peft_layout.refuse_nothing(dampening)
    if ref.kind == "gguf":
        gguf_lora.write(ref, dampening, target)
        return Written()
    model = empty_model(ref)
    changes = low_rank(ref, model, dampening)
    modules = dampening.modules(model)
    biased = any(change.bias.any() for change in changes.values())
    with_experts = _must_name_parameters(model, changes)
    if with_experts:
        _refuse_with_experts(ref, changes)
        parts = _by_parameter(model, modules, changes)
    else:
        parts = [_Part(site, site, change.a[0], change.b[0]) for site, change in changes.items()]
    _refuse_renamed(model, parts)
    tensors: dict[str, Values] = {}
    for part in parts:
        tensors[f"{part.wrapper}.lora_A.weight"] = part.a
        tensors[f"{part.wrapper}.lora_B.weight"] = part.b
    if biased:
        tensors |= {f"{site}.lora_B.bias": change.bias for site, change in changes.items()}
    rank = max(change.rank for change in changes.values())
    lower = {
        re.escape(part.target): change.rank
        for part, change in zip(parts, changes.values(), strict=True)
        if change.rank < rank
    }
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "target_modules": [] if with_experts else _targets(model, changes),
        "target_parameters": [part.target for part in parts] if with_experts else None,
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
        "init_lora_weights": True,
    }
    peft_layout.write_files(target, ref, tensors, settings)
    _tell(changes, modules, rank, biased=biased, with_experts=with_experts)
    return Written()


def _must_name_parameters(model: PreTrainedModel, sites: Iterable[str]) -> bool:
    """Whether PEFT finds the sites by parameters alone: experts, and modules with their names."""
    among_experts = any(expert_matrices(module) for module in model.modules())
    return among_experts and any(site.rpartition(".")[2] in _LIKE_EXPERTS for site in sites)


@dataclass(frozen=True)
class _Part:
    """What PEFT stores for one site.

    Args:
        target: The module or the parameter that it adapts.
        wrapper: The path of what it puts in its place, where the tensors belong.
        a: float32 [rank, inputs]; of experts [experts · rank, inputs].
        b: float32 [neurons, rank]; of experts [neurons, rank · experts].
    """

    target: str
    wrapper: str
    a: Values
    b: Values


def _by_parameter(
    model: PreTrainedModel, modules: Mapping[str, Any], changes: Mapping[str, LowRank]
) -> list[_Part]:
    """The parts, if PEFT finds them by parameters (`target_parameters`)."""
    targets = {site: parameters_of(site, modules[site])[0] for site in changes}
    wrappers = _wrappers(model, set(targets.values()))
    parts = []
    for site, change in changes.items():
        a, b = change.a, change.b
        if _is_turned(model, site, modules[site]):  # for PEFT its inputs are outputs
            a, b = b.transpose(0, 2, 1), a.transpose(0, 2, 1)
        parts.append(
            _Part(
                targets[site],
                wrappers[targets[site]],
                np.ascontiguousarray(a.reshape(-1, a.shape[2])),
                np.ascontiguousarray(b.transpose(1, 2, 0).reshape(b.shape[1], -1)),
            )
        )
    return parts


def _is_turned(model: PreTrainedModel, site: str, module: Any) -> bool:
    """Whether a parameter is [inputs, neurons] where PEFT does not know it.

    It takes the first dimension for the neurons, except in experts' modules with `is_transposed`.
    """
    if not isinstance(module, ExpertMatrix):
        return isinstance(module, Conv1D)
    owner = model.get_submodule(site.rpartition(".")[0])
    return module.transposed and not getattr(owner, "is_transposed", False)


def _wrappers(model: PreTrainedModel, targets: Collection[str]) -> dict[str, str]:
    """By parameter, the path of PEFT's wrapper: they are nested, a module's last one outermost."""
    found = {}
    for owner in {target.rpartition(".")[0] for target in targets}:
        names = [name for name, _ in model.get_submodule(owner).named_parameters(recurse=False)]
        here = [f"{owner}.{name}" for name in names if f"{owner}.{name}" in targets]
        for depth, target in enumerate(reversed(here)):
            found[target] = owner + ".base_layer" * depth
    return found


def _refuse_with_experts(ref: ModelRef, changes: Mapping[str, LowRank]) -> None:
    """Raise `UserError` for changes that PEFT's adapters of MoE experts cannot hold."""
    instead = "use `format=weights` or `format=hooks`."
    if biased := [site for site, change in changes.items() if change.bias.any()]:
        raise UserError(
            f"{counted(len(biased), 'site changes its', 'sites change their')} bias (such as "
            f"{biased[0]}), and PEFT's LoRA of MoE experts holds no biases: {instead}"
        )
    if quantisation_of(ref.path):
        raise UserError(
            f"{ref.name} is quantised, and PEFT's LoRA of MoE experts needs plain weights: "
            f"{instead}"
        )


def _refuse_renamed(model: PreTrainedModel, parts: Iterable[_Part]) -> None:
    """Refuse paths that PEFT would not find again.

    It renames what is in the file by transformers' table for checkpoints, also where the name is a
    module's already (Laguna's shared experts), and passes over what it then does not know.
    """
    conversions = Conversions(model)
    for part in parts:
        name = f"{part.wrapper}.lora_A.weight"
        # PEFT takes back what only shortens a name at its beginning.
        if not name.endswith(conversions.renamed(name)):
            raise UserError(
                f"PEFT renames {part.wrapper} while it loads an adapter and does not find it "
                "again: use `format=weights` or `format=hooks`, or choose other `sites` when you "
                "find the expertise."
            )


def low_rank(ref: ModelRef, model: PreTrainedModel, dampening: Dampening) -> dict[str, LowRank]:
    """The changes of a folder's model by site, without sites that do not change.

    Args:
        ref: A safetensors folder; its rows are de-quantised where it is quantised.
        model: Its module tree.
        dampening: Factors for its sites.

    Raises:
        UserError: A site is a norm, or is not in the files as rows.
    """
    modules = dampening.modules(model)
    rows = {site: np.flatnonzero(dampening.factors[site] != 1) for site in modules}
    changed = [site for site in modules if rows[site].size or site in dampening.shifted]
    peft_layout.refuse_norms(modules, changed, "LoRA")
    sizes = {site: dampening.factors[site].size for site in changed}
    stored = _Rows(ref, model, {site: modules[site] for site in changed}, sizes)
    weights, biases = stored.weights(rows), stored.biases()
    found = {}
    for site in changed:
        factors, module = dampening.factors[site], modules[site]
        matrices = module.experts if isinstance(module, ExpertMatrix) else 1
        a, b = pair(factors.reshape(matrices, -1), weights[site])
        bias = np.zeros_like(factors)
        if site in biases:
            bias = (factors - np.float32(1)) * biases[site]
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
        sizes: Their numbers of neurons.
    """

    def __init__(
        self,
        ref: ModelRef,
        model: PreTrainedModel,
        modules: Mapping[str, Any],
        sizes: Mapping[str, int],
    ) -> None:
        self._sites, self._modules, self._sizes = list(modules), modules, sizes
        self._quantised = read_quantised(ref.path)
        self._stored = StoredTensors(ref)
        names = self._quantised.names if self._quantised else self._stored.empty.keys()
        shapes = {name: tuple(tensor.shape) for name, tensor in self._stored.empty.items()}
        neurons, owners = {}, {}
        for number, (site, module) in enumerate(modules.items(), start=1):
            own, count = (
                torch.full((sizes[site],), float(number)),
                torch.arange(1.0, sizes[site] + 1),
            )
            weight, bias = parameters_of(site, module)
            neurons[weight], owners[weight] = by_neuron(module, count), by_neuron(module, own)
            if module.bias is not None:
                neurons[bias], owners[bias] = by_bias(module, count), by_bias(module, own)
        self._places = on_disk(model, neurons, names, rest=0.0, shapes=shapes)
        self._owners = on_disk(model, owners, names, rest=0.0, shapes=shapes)

    def _inputs(self, site: str) -> int:
        return int(self._modules[site].weight.numel()) // self._sizes[site]

    def weights(self, rows: Mapping[str, NDArray[np.int64]]) -> dict[str, Values]:
        """The rows of these neurons by site, float32 [neurons asked for, inputs]."""
        found: defaultdict[str, dict[int, Values]] = defaultdict(dict)
        wanted = {site: set(rows[site].tolist()) for site in self._sites}
        for name, site, neurons, lines in self._parts(of_biases=False):
            here = [n for n, neuron in enumerate(neurons) if neuron in wanted[site]]
            if here:
                values = self._matrix(name, self._inputs(site))
                for n in here:
                    found[site][neurons[n]] = values[lines[n]].to(torch.float32).numpy()
        return {
            site: np.array(
                [found[site][neuron] for neuron in rows[site].tolist()], np.float32
            ).reshape(-1, self._inputs(site))
            for site in self._sites
        }

    def biases(self) -> dict[str, Values]:
        """The biases of the sites that have one, float32 [neurons]."""
        found: dict[str, Values] = {}
        for name, site, neurons, lines in self._parts(of_biases=True):
            values = found.setdefault(site, np.zeros(self._sizes[site], np.float32))
            values[neurons] = self._stored[name][...].flatten()[lines].to(torch.float32).numpy()
        return found

    def _parts(self, *, of_biases: bool) -> Iterator[tuple[str, str, list[int], list[int]]]:
        """Each tensor's name with one of its sites, that site's neurons, and their rows there."""
        for name, numbers in self._places.items():
            if name.endswith("bias") != of_biases:
                continue
            neurons, owners = numbers.flatten(), self._owners[name].flatten()
            for number in owners.unique().int().tolist():
                lines = (owners == number).nonzero().flatten()
                if number:
                    site = self._sites[number - 1]
                    yield name, site, (neurons[lines].long() - 1).tolist(), lines.tolist()

    def _matrix(self, name: str, inputs: int) -> Tensor:
        """A tensor of the files as [neurons, inputs], de-quantised; experts one after another."""
        if self._quantised and name in self._quantised.layers:
            return self._quantised.scheme.rows(self._quantised.layers[name])
        values = self._stored[name][...]
        is_turned = self._places[name].shape[-1] > 1  # its numbers go along the neurons
        return (values.transpose(-1, -2) if is_turned else values).reshape(-1, inputs)


def _targets(model: PreTrainedModel, sites: Mapping[str, Any]) -> list[str]:
    """The shortest names that match these modules and no others; servers support those best."""
    ends = sorted({site.rpartition(".")[2] for site in sites})
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends}
    return ends if meant == set(sites) else list(sites)


def _tell(
    changes: Mapping[str, LowRank],
    modules: Mapping[str, Any],
    rank: int,
    *,
    biased: bool,
    with_experts: bool,
) -> None:
    least = min(change.rank for change in changes.values())
    if with_experts:
        note(
            "the model has MoE experts, so the adapter names parameters (target_parameters): PEFT "
            "supports that, though it may warn of ignored ranks; it was not tried with any server."
        )
    if least < rank:
        note(
            f"the matrices have ranks from {least} to {rank} (rank_pattern): PEFT supports that, "
            "and some servers do not (SGLang and TGI want one rank for all)."
        )
    if biased:
        note("biases change, which only PEFT supports (lora_bias): no server loads this adapter.")
        if without := [site for site in changes if modules[site].bias is None]:
            note(
                f"no bias: {counted(len(without), 'site')} (such as {without[0]}), so PEFT runs "
                "the adapter and cannot merge it."
            )


def card(record: Provenance) -> str:
    """The README.md of an adapter's folder, with the lines that load it."""
    if record.model.kind == "gguf":
        return with_front(peft_layout.front(record, "lora"), plain_card(record) + _USE_GGUF)
    return peft_layout.card(record, "lora", _NOTE)


_NOTE = "The scale of the adapter is the strength: 0 is the original, 1 is the edit.\n"
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
    (peft_layout.WEIGHTS, gguf_lora.FILE),
    is_ranked=True,
)
