"""Show a model's linear layers, an artefact, or what was done to a model."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino import hub
from sordino.edits import is_dampened, read_provenance
from sordino.edits.quantised import read_quantised, refuse_unfit_layers
from sordino.errors import UserError
from sordino.expertise import Expertise
from sordino.files import counted, has_suffix, printable, user_path
from sordino.interventions import Dampening
from sordino.models.open import empty_model
from sordino.models.reference import resolve
from sordino.models.sites import find_sites
from sordino.report.text import (
    dampening_lines,
    dampening_summary,
    expertise_lines,
    expertise_summary,
)
from sordino.tuning.calibration import dampening_of


@dataclass(frozen=True)
class Inspection:
    """What `inspect` shows.

    Args:
        facts: The facts, for JSON.
        lines: The same, as lines to print.
    """

    facts: Mapping[str, Any]
    lines: tuple[str, ...]


def inspect(
    subject: str | Path,
    *,
    intervention: str = "aura",
    strength: float = 1.0,
    settings: Mapping[str, Any] | None = None,
    revision: str | None = None,
    sites: str | None = None,
) -> Inspection:
    """Show a model's linear layers, an expertise file, or what was done to a model.

    Args:
        subject: A model, an expertise or dampening file ("hf:org/name" for one on the hub), or a
            folder or ".gguf" file that Sordino wrote.
        intervention: The rule whose effect on an expertise is shown.
        strength: See `Dampening.scaled`.
        settings: The rule's own settings.
        revision: See `sordino.open_model`.
        sites: See `sordino.open_model`.

    Raises:
        UserError: There is no such thing, it cannot be read, or an argument is for something else.

    Example:
        >>> print(*sordino.inspect("tiny").lines, sep="\\n")
        tiny: LlamaForCausalLM, 4 layers, 512 neurons in 12 sites
          mlp.gate_proj: 48 neurons × 4
          mlp.up_proj: 48 neurons × 4
          mlp.down_proj: 32 neurons × 4
    """
    path = user_path(subject)
    of_a_model = {"revision": revision is not None, "sites": sites is not None}
    of_a_rule = {
        "intervention": intervention != "aura",
        "strength": strength != 1,
        "settings": bool(settings),
    }
    if hub.is_shared(str(subject)) or (has_suffix(path, ".safetensors") and not path.is_dir()):
        _refuse_unused(subject, of_a_model, "a model")
        dampening = dampening_of(path, intervention, strength=strength, settings=settings)
        return _file(path, dampening)
    _refuse_unused(subject, of_a_rule, "an expertise file")
    if is_dampened(path):
        _refuse_unused(subject, of_a_model, "a model without a record of Sordino")
        return _inspect_edited(path)
    return _model(str(subject), revision, sites)


def _refuse_unused(subject: str | Path, given: Mapping[str, bool], what: str) -> None:
    """Raise `UserError` for an argument that would do nothing for this subject."""
    for name, is_given in given.items():
        if is_given:
            raise UserError(f"`{name}` is for {what}, which {printable(str(subject))} is not.")


def _file(path: Path, dampening: Dampening) -> Inspection:
    facts, lines = dampening_summary(dampening), dampening_lines(dampening)
    if Dampening.is_in(path):
        return Inspection(facts, tuple(lines))
    expertise = Expertise.load(path)
    return Inspection(
        {**expertise_summary(expertise), "dampening": facts},
        (*expertise_lines(expertise), *lines),
    )


def _inspect_edited(path: Path) -> Inspection:
    record = read_provenance(path)
    found = record.expertise
    lines = [
        f"{path}: {record.model.name}, dampened by sordino {record.sordino_version} on "
        f"{record.created}",
        f"intervention {record.origin.in_words}: {record.changed:,} of {record.neurons:,} neurons "
        f"in {counted(len(record.sites), 'site')}",
    ]
    if {"concept", "n_positive", "n_negative", "concept_source"} <= found.keys():
        lines.append(
            f"concept {found['concept']}: {found['n_positive']} positive and "
            f"{found['n_negative']} negative sentences ({found['concept_source']})"
        )
    if record.quantised:
        lines.append(f"quantised: {record.quantised.scheme}")
    if record.draft_heads:
        alike = len(record.draft_heads.dampened)
        lines.append(
            f"draft heads: {', '.join(record.draft_heads.names)}, "
            + (f"{counted(alike, 'tensor')} dampened alike" if alike else "copied as they were")
        )
    if record.left_out:
        files = ", ".join(record.left_out)
        lines.append(f"left out, since they hold undampened weights: {files}")
    return Inspection(record.as_json(), tuple(lines))


def _model(subject: str, revision: str | None, pattern: str | None) -> Inspection:
    ref = resolve(subject, revision)
    model = empty_model(ref)
    sites = find_sites(model, pattern)
    neurons = sum(site.neurons for site in sites)
    layers = 1 + max(site.layer for site in sites)
    kinds = Counter((site.kind, site.neurons) for site in sites)
    lines = [
        f"{ref.name}: {type(model).__name__}, {counted(layers, 'layer')}, {neurons:,} neurons in "
        f"{counted(len(sites), 'site')}",
        *(f"  {kind}: {size:,} neurons × {count}" for (kind, size), count in kinds.items()),
    ]
    quantised = read_quantised(ref.path) if ref.kind == "folder" else None
    if quantised:
        refuse_unfit_layers(ref.name, model, quantised)
        lines.append(
            f"quantised: {quantised.scheme.label}; {counted(len(quantised.layers), 'layer')}"
        )
    facts = {
        "model": ref.name,
        "architecture": type(model).__name__,
        "layers": layers,
        "neurons": neurons,
        "sites": [vars(site) for site in sites],
        "quantised": quantised.scheme.label if quantised else "",
    }
    return Inspection(facts, tuple(lines))
