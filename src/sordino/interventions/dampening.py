"""Dampening factors and shifts, and their use on a model in memory."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, field_validator
from safetensors.numpy import save
from torch import Tensor, nn
from transformers import Conv1D

from sordino.errors import UserError
from sordino.files import counted, fingerprint, is_regular, new_file, printable
from sordino.hub import fetch_if_shared
from sordino.interventions.rows import AtMost
from sordino.models.dtypes import PLAIN
from sordino.models.experts import ExpertMatrix, Hook, expert_matrix, experts_hooked
from sordino.models.hooks import ForwardHook, forward_hooks
from sordino.models.norms import NormGain, norms_after_blocks
from sordino.models.reference import ModelRef
from sordino.models.safetensors_header import read_metadata
from sordino.models.sites import is_linear, neurons_of
from sordino.models.tensor_file import read_about, read_tensors
from sordino.records import Kept, Number, Setting, Site, parse_format

FORMAT = "sordino-dampening-1"
MOST_STRENGTH = 1e20
"""The largest strength; float32 can hold what it makes of any usual factor."""
_ENTRY = "sordino"
"""The metadata's one entry, which is JSON."""


def check_strength(strength: float) -> None:
    """Refuse a strength below 0, above `MOST_STRENGTH`, or that is not a number.

    Raises:
        UserError: It is one.
    """
    if not isinstance(strength, int | float | np.number):
        raise UserError(f"`strength={strength}` is not a number: give one.")
    if not 0 <= strength <= MOST_STRENGTH:
        raise UserError(
            f"`strength={strength:g}` is out of range: it must be from 0 to {MOST_STRENGTH:g}."
        )


class UsedRule(Kept):
    """The rule that gave factors, as a file names it."""

    name: str
    strength: Annotated[Number, Field(ge=0)]
    settings: dict[str, Setting | None]

    @field_validator("settings")
    @classmethod
    def _are_settings(cls, given: dict[str, Any]) -> dict[str, Any]:
        # They are given to the rule by name, where these have another meaning.
        if odd := given.keys() & {"expertise", "rule", "strength"}:
            raise ValueError(f"{min(odd)} is no setting")
        return given


class Origin(Kept):
    """Where factors came from, as a file says it.

    Args:
        intervention: The rule that gave them.
        expertise: The metadata of the expertise that they were derived from.
        parts: The origins of the dampenings that they are composed of, in their order.
    """

    intervention: UsedRule
    expertise: dict[str, str]
    parts: "tuple[Origin, ...]" = ()

    @property
    def in_words(self) -> str:
        """The rule and the strength, of every part where there are several."""
        rule = self.intervention
        if not self.parts:
            return f"{rule.name}, strength {rule.strength:g}"
        parts = "; then ".join(
            f"{part.expertise.get('concept', 'a concept')}: {part.in_words}" for part in self.parts
        )
        return parts if rule.strength == 1 else f"{parts}; all at strength {rule.strength:g}"

    @property
    def leaves(self) -> list["Origin"]:
        """The origins that are composed of no others: this one, or its parts'."""
        if not self.parts:
            return [self]
        return [leaf for part in self.parts for leaf in part.leaves]


class _About(Origin):
    sites: Annotated[list[Site], Field(min_length=1)]


_ABOUT = TypeAdapter(_About)


class Edit(Protocol):
    """An edit of a model in memory, such as a `Dampening`."""

    @property
    def intervention(self) -> str:
        """The name of the method that gave it."""
        ...

    @property
    def changed(self) -> int:
        """The number of neurons that it changes."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the edit."""
        ...

    def applied(self, model: nn.Module) -> AbstractContextManager[None]:
        """Edit the model inside the block."""
        ...

    def scaled(self, strength: float) -> "Edit":
        """The same at another strength."""
        ...


class Affine(NamedTuple):
    """What a rule with shifts gives: an output z becomes factor · z + shift.

    Args:
        factors: By site path, [neurons].
        shifts: By site path, [neurons].
    """

    factors: Mapping[str, NDArray[np.floating[Any]]]
    shifts: Mapping[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True, eq=False)
class Dampening:
    """One factor per neuron, by which its output is multiplied, and with some rules a shift.

    Args:
        factors: By site path, float32 [neurons], finite.
        intervention: The rule that gave them, such as "aura".
        strength: 1 for the rule as it is, 0 for no change; see `scaled`.
        settings: The rule's other settings, such as {"k": 100}.
        expertise: The metadata of the expertise that they were derived from.
        shifts: What is added after the product, by site path, float32 [neurons], finite; nothing
            where a site has none.
        parts: The origins of the dampenings that this one is composed of, in their order.
    """

    factors: Mapping[str, NDArray[np.float32]]
    intervention: str
    strength: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    expertise: Mapping[str, str] = field(default_factory=dict)
    shifts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    parts: Sequence[Origin] = ()

    def __repr__(self) -> str:
        """One line without the factors: the rule, the concept, the model, the number of neurons."""
        about = self.expertise
        return printable(
            f"Dampening({self.intervention} at strength {self.strength:g}, "
            f"{about.get('concept', '')!r} in {about.get('model', '')!r}: "
            f"{sum(values.size for values in self.factors.values()):,} neurons of "
            f"{counted(len(self.factors), 'site')})"
        )

    def __post_init__(self) -> None:
        for kind, by_site in (("factors", self.factors), ("shifts", self.shifts)):
            for site, values in by_site.items():
                if not np.all(np.isfinite(values)):
                    raise UserError(f"The dampening {kind} of {site} are not all finite numbers.")
        for site, shifts in self.shifts.items():
            if site not in self.factors or shifts.shape != self.factors[site].shape:
                raise UserError(
                    f"The dampening shifts of {site} need as many factors beside them: give "
                    "factors of 1 where nothing is to be multiplied."
                )

    @property
    def changed(self) -> int:
        """How many neurons have a factor other than 1 or a shift other than 0."""
        return sum(
            int(np.count_nonzero((factors != 1) | (self.shifts.get(site, 0) != 0)))
            for site, factors in self.factors.items()
        )

    @property
    def rows(self) -> dict[str, int]:
        """How many rows of its weight change, by site: neurons with a factor other than 1."""
        return {site: int(np.count_nonzero(f != 1)) for site, f in self.factors.items()}

    @property
    def neurons(self) -> int:
        """The number of neurons that have a factor."""
        return sum(factors.size for factors in self.factors.values())

    @property
    def shifted(self) -> tuple[str, ...]:
        """The sites that have a shift other than 0, which need a bias to hold it."""
        return tuple(site for site, shifts in self.shifts.items() if shifts.any())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all factors and shifts."""
        return fingerprint(
            *(
                f"{kind}:{site}:{np.asarray(values).tobytes().hex()}"
                for kind, by_site in (("factor", self.factors), ("shift", self.shifts))
                for site, values in by_site.items()
            )
        )

    @property
    def record(self) -> Origin:
        """The origin of the factors, as a file says it."""
        rule = UsedRule(
            name=self.intervention, strength=self.strength, settings=dict(self.settings)
        )
        expertise = dict(sorted(self.expertise.items()))
        if not self.parts:
            return Origin(intervention=rule, expertise=expertise)
        return Origin(intervention=rule, expertise=expertise, parts=tuple(self.parts))

    @property
    def origins(self) -> list[Mapping[str, str]]:
        """The metadata of every expertise that the factors were derived from."""
        return [leaf.expertise for leaf in self.record.leaves]

    def refuse_other_weights(self, ref: ModelRef) -> None:
        """Refuse a model with other weights than those that the factors were found on.

        Factors that were made by hand name no weights and fit any.

        Raises:
            UserError: They were found on others.
        """
        weights = ref.weights_fingerprint()
        for found in self.origins:
            if found.get("weights_fingerprint", weights) != weights:
                raise UserError(
                    f"The expertise was found on other weights ({found.get('model', '?')}) than "
                    f"those of {ref.name}: find it on this model, or bake it with "
                    "`allow_other_weights` if it is a sibling (a fine-tuned copy)."
                )

    def scaled(self, strength: float) -> "Dampening":
        """The same dampening at another strength: factors 1 − strength · (1 − factor).

        Shifts are multiplied by the strength, so that the output lies on the line between what it
        was and what this dampening makes of it, or beyond where the strength is above 1; but no
        factor that is not negative becomes so.

        Args:
            strength: 0 for no change, 1 for these factors, more to go further the same way.

        Raises:
            UserError: As for `check_strength`.
        """
        check_strength(strength)
        if strength == 1:  # 1 − (1 − factor) would lose bits of a factor below ½
            return self
        factors = {
            site: np.maximum(1 - strength * (1 - values), np.minimum(values, 0)).astype(np.float32)
            for site, values in self.factors.items()
        }
        shifts = {
            site: (strength * values).astype(np.float32) for site, values in self.shifts.items()
        }
        return replace(self, factors=factors, shifts=shifts, strength=self.strength * strength)

    def limited(self, rows: int) -> "Dampening":
        """The same, but in each site only the neurons that it changes most.

        They are those whose factor is farthest from 1 and, among equal ones, whose shift is
        largest; the others stay as they are.

        Args:
            rows: The most of each site.

        Raises:
            UserError: It is below 1.
        """
        factors, shifts = dict(self.factors), dict(self.shifts)
        for site, values in self.factors.items():
            moved = np.abs(self.shifts[site]) if site in self.shifts else np.zeros_like(values)
            by_change = np.lexsort((moved, np.abs(1 - values)))
            rank = np.empty(values.size)
            rank[by_change] = np.arange(values.size)
            kept = AtMost(rows, (values.size,)).largest(rank)
            factors[site] = np.where(kept, values, np.float32(1))
            if site in self.shifts:
                shifts[site] = np.where(kept, self.shifts[site], np.float32(0))
        settings = {**self.settings, "rows": rows}
        return replace(self, factors=factors, shifts=shifts, settings=settings)

    def modules(self, model: nn.Module) -> dict[str, Any]:
        """The sites in a model, by path: linear layers, experts' matrices, norms' gains.

        Raises:
            UserError: The model lacks a site, or the site has another number of neurons.
        """
        return {site: _module(model, site, values.size) for site, values in self.factors.items()}

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Dampen the sites' outputs with forward hooks inside the block; the weights stay.

        Args:
            model: A model with this dampening's sites.

        Raises:
            UserError: The model lacks a site, or the site has another number of neurons.
        """
        of_layers: list[tuple[nn.Module, ForwardHook]] = []
        of_experts: dict[str, Hook] = {}
        for site, module in self.modules(model).items():
            factors, shifts = torch.from_numpy(self.factors[site]), self._shift(site)
            if isinstance(module, ExpertMatrix):
                of_experts[site] = _expert_hook(module.experts, factors, shifts)
            else:
                shown = module.module if isinstance(module, NormGain) else module
                of_layers.append((shown, _hook(factors, shifts)))
        with forward_hooks(of_layers), experts_hooked(model, of_experts):
            yield

    @torch.no_grad()
    def bake_into(self, model: nn.Module) -> None:
        """Change the rows of the weights and the biases in place, for good.

        A site that is shifted and has no bias gets one. To save such a model, set what its
        configuration calls it, such as `mlp_bias`; `sordino.bake` does.

        Args:
            model: A model with this dampening's sites.

        Raises:
            UserError: The model lacks a site, the site has another number of neurons or is
                quantised, or a product is larger than its type can hold; then nothing was changed.
        """
        modules = self.modules(model)
        for site, module in modules.items():
            _refuse_quantised(site, module)
        for site in self.shifted:
            if isinstance(modules[site], ExpertMatrix | NormGain) and modules[site].bias is None:
                kind = "norm" if isinstance(modules[site], NormGain) else "matrix of MoE experts"
                raise UserError(f"{site} is a {kind} without biases to hold its shifts: use hooks.")
        for site, module in modules.items():
            for name, tensor, factors, shifts in self._products(site, module):
                _refuse_overflow(name, scaled(tensor, factors, shifts))
        for site in self.shifted:
            if modules[site].bias is None:
                ensure_bias_(modules[site])
        for site, module in modules.items():
            for _, tensor, factors, shifts in self._products(site, module):
                tensor.copy_(scaled(tensor, factors, shifts))

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the dampening as a safetensors file; it appears only when it is whole.

        The tensors are `<site>.scale` and, where there are shifts, `<site>.shift`. The one entry of
        the metadata, "sordino", is JSON: one entry, because the library writes several in an order
        that changes from process to process.

        Raises:
            UserError: `path` exists and `force` is not set.
        """
        tensors = {f"{site}.scale": values for site, values in self.factors.items()}
        tensors |= {f"{site}.shift": values for site, values in self.shifts.items()}
        about = {"format": FORMAT, "sites": list(self.factors), **self.record.as_json()}
        with new_file(Path(path), force=force) as stage:
            contiguous = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
            # `save_file` would make it readable to its owner alone.
            stage.write_bytes(save(contiguous, metadata={_ENTRY: json.dumps(about)}))
        return Path(path)

    @staticmethod
    def is_in(path: str | Path) -> bool:
        """Whether a file, here or on the hub, says that it holds a dampening."""
        source = fetch_if_shared(path)
        try:
            return is_regular(source) and _ENTRY in read_metadata(source)
        except UserError:
            return False

    @classmethod
    def load(cls, path: str | Path) -> "Dampening":
        """Read what `save` wrote.

        Args:
            path: The file, or "hf:org/name" for one of the hub; see `sordino.hub.fetch_if_shared`.

        Raises:
            UserError: The file is missing, damaged or no dampening.
        """
        source = fetch_if_shared(path)
        text = read_about(source, "dampening").get(_ENTRY, "{}")
        about = parse_format(_ABOUT, text, str(source), "dampening", FORMAT)
        tensors = read_tensors(source, "dampening", ("F32",))
        factors = {site: tensors.pop(f"{site}.scale", None) for site in about.sites}
        shifts = {s: tensors.pop(f"{s}.shift") for s in about.sites if f"{s}.shift" in tensors}
        if tensors or len(factors) < len(about.sites):
            odd = next(iter(tensors), "a site twice")
            raise UserError(f"{source} holds {printable(odd)}, of no listed site: it is damaged.")
        found = {s: values for s, values in factors.items() if values is not None and values.size}
        if lacking := factors.keys() - found.keys():
            raise UserError(
                f"{source} lacks the factors of {printable(min(lacking))}: it is damaged."
            )
        rule = about.intervention
        return cls(
            found,
            rule.name,
            rule.strength,
            rule.settings,
            about.expertise,
            shifts,
            about.parts,
        )

    def _products(
        self, site: str, module: Any
    ) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
        """The name of each tensor of a site, the tensor, its factors and its shifts."""
        factors, shifts = torch.from_numpy(self.factors[site]), self._shift(site)
        of_weight = module.scaled_by(factors) if isinstance(module, NormGain) else None
        yield f"{site}.weight", module.weight, by_neuron(module, factors), of_weight
        bias = module.bias
        if bias is None and shifts is not None:
            bias = shifts.new_zeros(shifts.shape, dtype=module.weight.dtype)
        if bias is not None:
            shifted = None if shifts is None else by_bias(module, shifts)
            yield f"{site}.bias", bias, by_bias(module, factors), shifted

    def _shift(self, site: str) -> Tensor | None:
        return torch.from_numpy(self.shifts[site]) if site in self.shifts else None


def compose(dampenings: Sequence[Dampening]) -> Dampening:
    """One dampening with the effect of several, applied one after the other.

    An output z becomes s₂ · (s₁ · z + t₁) + t₂, and so on; factors alone are multiplied, in any
    order to the same result. It is computed in float64 and rounded once. What one of them has no
    site for stays as it is there.

    Args:
        dampenings: In the order of their use, at least one.

    Returns:
        Its `parts` are their records. Its name and its concept are theirs, joined by "+"; the
        expertise's other metadata are those on which all agree.

    Raises:
        UserError: There is none, or something else than a dampening; two of them have different
            numbers of neurons for one site, or a product is too large.
    """
    if wrong := [one for one in dampenings if not isinstance(one, Dampening)]:
        raise UserError(
            f"Dampenings can be composed, and not a {type(wrong[0]).__name__}: turn an expertise "
            "into one with sordino.dampen."
        )
    if not dampenings:
        raise UserError("There is no dampening to compose: give at least one.")
    if len(dampenings) == 1:
        return dampenings[0]
    factors: dict[str, NDArray[np.float64]] = {}
    shifts: dict[str, NDArray[np.float64]] = {}
    for dampening in dampenings:
        for site, values in dampening.factors.items():
            scale = values.astype(np.float64)
            before = factors.get(site, np.ones_like(scale))
            if before.shape != scale.shape:
                raise UserError(
                    f"{site} has {before.size} factors in one dampening and {scale.size} in "
                    "another: they were found on different architectures."
                )
            factors[site] = before * scale
            if site in shifts or site in dampening.shifts:
                shifts[site] = shifts.get(site, 0.0) * scale + dampening.shifts.get(site, 0.0)
    with np.errstate(over="ignore"):  # what is infinite is refused
        return Dampening(
            {site: values.astype(np.float32) for site, values in factors.items()},
            _joined(dampening.intervention for dampening in dampenings),
            expertise=_common([dampening.expertise for dampening in dampenings]),
            shifts={site: values.astype(np.float32) for site, values in shifts.items()},
            parts=tuple(dampening.record for dampening in dampenings),
        )


def by_neuron(module: Any, values: Tensor) -> Tensor:
    """Values of neurons, [neurons], in a form that broadcasts to their weight.

    Args:
        module: A linear layer, a matrix of MoE experts, or a norm's gain.
        values: One value per neuron.
    """
    if isinstance(module, ExpertMatrix):
        of_experts = values.view(module.experts, -1)
        return of_experts[:, None, :] if module.transposed else of_experts[:, :, None]
    if isinstance(module, NormGain):
        return values
    return values[None, :] if isinstance(module, Conv1D) else values[:, None]


def by_bias(module: Any, values: Tensor) -> Tensor:
    """Values of neurons, [neurons], in the form of their biases."""
    return values.view(module.experts, -1) if isinstance(module, ExpertMatrix) else values


def scaled(tensor: Tensor, factors: Tensor, shifts: Tensor | None = None) -> Tensor:
    """A weight or a bias times factors, with shifts added.

    It is computed in float32 (float64 for float64) and rounded once to the tensor's own dtype.

    Args:
        tensor: Of any shape.
        factors: float32, of a shape that broadcasts to the tensor's.
        shifts: The same, added after the product.
    """
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * factors.to(tensor.device)
    shifted = wide if shifts is None else wide + shifts.to(tensor.device)
    return shifted.to(tensor.dtype)


def _refuse_overflow(name: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise UserError(
            f"{name} would hold values larger than its type has "
            f"({str(values.dtype).removeprefix('torch.')}), or holds some that are infinite or not "
            "numbers: give smaller factors."
        )


def ensure_bias_(module: Any) -> None:
    """Give a linear layer without a bias one of zeros, of its weight's dtype."""
    if module.bias is None:
        neurons = module.weight.shape[0]  # a Conv1D, whose weight is transposed, has a bias always
        module.bias = nn.Parameter(module.weight.new_zeros(neurons))


def _joined(names: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(names))


def _common(every: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The metadata on which all agree, and the names of all concepts."""
    first, *others = every
    found = {
        key: value
        for key, value in first.items()
        if all(other.get(key) == value for other in others)
    }
    concepts = _joined(metadata["concept"] for metadata in every if "concept" in metadata)
    return found | ({"concept": concepts} if concepts else {})


def _hook(scale: Tensor, shift: Tensor | None) -> Callable[..., Tensor]:
    @cache
    def fitting(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        # Both take the output's dtype, so that a bfloat16 model stays one, even with int8 weights.
        # They outlive a sweep's inference mode, and may be differentiated through later.
        with torch.inference_mode(False):
            return scale.to(device, dtype), None if shift is None else shift.to(device, dtype)

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        factor, summand = fitting(output.device, output.dtype)
        return output * factor if summand is None else torch.addcmul(summand, output, factor)

    return hook


def _expert_hook(experts: int, factors: Tensor, shifts: Tensor | None) -> Hook:
    hooks = [
        _hook(of_one, None if shifts is None else shifts.view(experts, -1)[expert])
        for expert, of_one in enumerate(factors.view(experts, -1))
    ]
    return lambda routed: hooks[routed.expert](None, None, routed.outputs)


def _module(model: nn.Module, site: str, neurons: int) -> Any:
    if matrix := expert_matrix(model, site):
        _refuse_other_size(site, matrix.neurons, neurons)
        return matrix
    try:
        module = model.get_submodule(site)
    except AttributeError:
        raise UserError(
            f"The model has no module {site}: the dampening was found on another architecture."
        ) from None
    parent, _, name = site.rpartition(".")
    if gain := dict(norms_after_blocks(model.get_submodule(parent))).get(name):
        _refuse_other_size(site, gain.neurons, neurons)
        return gain
    if not is_linear(module):
        raise UserError(f"{site} is a {type(module).__name__}, not a linear layer.")
    _refuse_other_size(site, neurons_of(module), neurons)
    return module


def _refuse_other_size(site: str, size: int, neurons: int) -> None:
    if size != neurons:
        raise UserError(
            f"{site} has {size} neurons, but the dampening has {neurons} factors for it."
        )


def _refuse_quantised(site: str, module: Any) -> None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in PLAIN.values():
        raise UserError(
            f"{site} is quantised, and quantised weights are not changed in memory: use hooks, or "
            "bake the model's folder."
        )
