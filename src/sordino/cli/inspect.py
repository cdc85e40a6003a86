"""`sordino inspect`."""

from collections import Counter
from pathlib import Path
from typing import Any

from sordino import hub
from sordino.cli.options import (
    InterventionOptions,
    ModelOptions,
    OutputOptions,
    print_json,
    print_lines,
)
from sordino.files import user_path


def inspect(
    subject: str,
    /,
    *,
    rule: InterventionOptions = InterventionOptions(),
    opening: ModelOptions = ModelOptions(),
    printing: OutputOptions = OutputOptions(),
) -> None:
    """Show a model's sites, what an expertise file holds, or what was done to a dampened model.

    Of an expertise it is also told what the intervention makes of it, at its strength.

    Parameters
    ----------
    subject
        A model, an expertise or dampening file (hf:org/name for one of the hub), or a folder or
        .gguf file that Sordino wrote.
    """
    with printing.in_force():
        path = user_path(subject)
        if hub.is_shared(subject) or (path.suffix == ".safetensors" and not path.is_dir()):
            value, lines = _file(path, rule)
        else:
            from sordino.edits import is_dampened

            known = is_dampened(path)
            value, lines = _dampened(path) if known else _model(subject, opening)
    if printing.json:
        print_json(value)
    else:
        print_lines(*lines)


def _file(path: Path, rule: InterventionOptions) -> tuple[dict[str, Any], list[str]]:
    from sordino.expertise import Expertise
    from sordino.interventions import Dampening
    from sordino.report.text import (
        dampening_lines,
        dampening_summary,
        expertise_lines,
        expertise_summary,
    )

    if Dampening.is_in(path):
        dampening = rule.dampening(None, [path])
        return dampening_summary(dampening), dampening_lines(dampening)
    expertise = Expertise.load(path)
    dampening = rule.dampening(None, [path])
    value = {**expertise_summary(expertise), "dampening": dampening_summary(dampening)}
    return value, [*expertise_lines(expertise), *dampening_lines(dampening)]


def _dampened(path: Path) -> tuple[dict[str, Any], list[str]]:
    from sordino.edits import read_provenance
    from sordino.edits.provenance import in_words

    record = read_provenance(path)
    found = record["expertise"]
    lines = [
        f"{path}: {record['model']['name']}, dampened by sordino {record['sordino_version']} on "
        f"{record['created']}",
        f"intervention {in_words(record)}: {record['changed']:,} of {record['neurons']:,} neurons "
        f"in {len(record['sites'])} sites",
    ]
    if {"concept", "n_positive", "n_negative", "concept_source"} <= found.keys():
        lines.append(
            f"concept {found['concept']}: {found['n_positive']} positive and "
            f"{found['n_negative']} negative sentences ({found['concept_source']})"
        )
    if "quantised" in record:
        lines.append(f"quantised: {record['quantised']['scheme']}")
    if record["left_out"]:
        lines.append(f"left out, since they hold undampened weights: {record['left_out']}")
    return record, lines


def _model(subject: str, opening: ModelOptions) -> tuple[dict[str, Any], list[str]]:
    from sordino.edits.quantised import read_quantised, refuse_unfit_layers
    from sordino.models.open import empty_model
    from sordino.models.reference import resolve
    from sordino.models.sites import find_sites

    ref = resolve(subject, opening.revision)
    model = empty_model(ref)
    sites = find_sites(model, opening.sites)
    neurons = sum(site.neurons for site in sites)
    layers = 1 + max(site.layer for site in sites)
    kinds = Counter((site.kind, site.neurons) for site in sites)
    lines = [
        f"{ref.name}: {type(model).__name__}, {layers} layers, {neurons:,} neurons in "
        f"{len(sites)} sites",
        *(f"  {kind}: {size:,} neurons × {count}" for (kind, size), count in kinds.items()),
    ]
    quantised = read_quantised(ref.path) if ref.kind == "folder" else None
    if quantised:
        refuse_unfit_layers(ref.name, model, quantised)
        lines.append(f"quantised: {quantised.scheme.label}; {len(quantised.layers)} layers")
    value = {
        "model": ref.name,
        "architecture": type(model).__name__,
        "layers": layers,
        "neurons": neurons,
        "sites": [vars(site) for site in sites],
        "quantised": quantised.scheme.label if quantised else "",
    }
    return value, lines
