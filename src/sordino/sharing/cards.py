"""The README.md that is pushed: what a hub's page shows, with the metadata it is found by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from sordino import hub
from sordino.edits.provenance import plain_card
from sordino.errors import UserError
from sordino.evaluation import Evaluation
from sordino.expertise import Expertise
from sordino.interventions import Dampening
from sordino.report.card import front_matter, line, model_card
from sordino.report.text import dampening_lines, expertise_lines

_FOLDER = "path/to/this/folder"


@dataclass(frozen=True)
class About:
    """What the user says of a repository.

    Args:
        repository: Its name, "org/name".
        license: The licence of the original, by the hub's name for it; None where its card says it.
        base_model: The hub's name of the original; None where the record says it.
    """

    repository: str
    license: str | None = None
    base_model: str | None = None


def of_model(
    record: Mapping[str, Any],
    evaluation: Evaluation | None,
    card: str,
    base_card: str | None,
    about: About,
    file: str = "",
) -> str:
    """The card of a dampened model or an adapter: the one that is there, its metadata completed.

    A card that nobody has written more into than `bake` did is made anew, with the figures if there
    are any.

    Args:
        record: What `sordino.json` says.
        evaluation: What changed, or None where that was not measured.
        card: The output's own README.md, "" where it has none.
        base_card: The original's card, where it is at hand.
        about: What the user says.
        file: The GGUF file's name, of a model that is one.

    Raises:
        UserError: The original's licence is not known.
    """
    plain = not front_matter(card) and card.strip() in ("", plain_card(record).strip())
    if record["written_as"] == "weights" and plain:
        card = model_card(record, evaluation, base_card, file)
    base_model = about.base_model or front_matter(card).get("base_model")
    own, base = front_matter(card), front_matter(base_card)
    terms = {key: of[key] for of in (base, own) for key in _TERMS if key in of}
    if about.license:
        terms = {"license": about.license}
    elif "license" not in terms and base_model and hub.reachable():
        terms = _terms_on_the_hub(str(base_model))
    if "license" not in terms:
        raise UserError(
            f"No card says under which licence {line(str(record['model']['name']))} is: give it, "
            "as in --license apache-2.0 (or gemma, llama3.2, other, …)."
        )
    front = {**own, **terms, **({"base_model": base_model} if base_model else {})}
    front["tags"] = list(dict.fromkeys([*front.get("tags", []), *_tags(record)]))
    body = ModelCard(card, ignore_metadata_errors=True).text.replace(_FOLDER, about.repository)
    return _card(front, body)


_TERMS = ("license", "license_name", "license_link")


def _terms_on_the_hub(base_model: str) -> dict[str, Any]:
    from huggingface_hub import HfApi

    try:
        data = HfApi().model_info(base_model).card_data
    except hub.failures():
        return {}
    known = data.to_dict() if data else {}
    return {key: known[key] for key in _TERMS if key in known}


def _tags(record: Mapping[str, Any]) -> list[str]:
    origins = [record, *record.get("parts", ())]
    concepts = [origin.get("expertise", {}).get("concept", "") for origin in origins]
    return [tag for tag in ("sordino", record["intervention"]["name"], *concepts) if tag]


def of_expertise(expertise: Expertise, file: str, about: About) -> str:
    """The card of an expertise, from its metadata."""
    metadata = expertise.metadata
    return _statistics(
        f"What the neurons of {metadata['model']} know of {metadata['concept']}",
        "What each neuron's response tells of a concept, as one number a neuron and statistic: its "
        "AUROC as a classifier, first of all. No weights are here, and no sentences.",
        [text.strip() for text in expertise_lines(expertise)],
        metadata,
        sorted(next(iter(expertise.statistics.values()))),
        file,
        about,
    )


def of_dampening(dampening: Dampening, file: str, about: About) -> str:
    """The card of a dampening, from its metadata."""
    metadata = dampening.expertise
    return _statistics(
        f"Dampening factors for {metadata.get('model', 'a model')}",
        "One factor a neuron, by which its output is multiplied (and a shift, with some rules). No "
        "weights are here, and no sentences.",
        dampening_lines(dampening),
        metadata,
        [],
        file,
        about,
    )


def _statistics(
    title: str,
    what: str,
    lines: list[str],
    metadata: Mapping[str, str],
    statistics: list[str],
    file: str,
    about: About,
) -> str:
    environment = Environment(
        loader=PackageLoader("sordino.sharing"),
        autoescape=False,  # noqa: S701 (Markdown; `line` tames what comes from outside)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    model = metadata.get("model", "MODEL")
    base_model = about.base_model or (model if metadata.get("revision") else None)
    body = environment.get_template("statistics.md.jinja").render(
        title=line(title),
        what=what,
        lines=[line(text) for text in lines],
        model=line(base_model or model),
        repository=about.repository,
        file=line(file),
        made=[(line(key), line(value)) for key, value in sorted(metadata.items())],
        statistics=statistics,
    )
    front: dict[str, Any] = {"library_name": "sordino"}
    if about.license:
        front["license"] = about.license
    if base_model:
        front["base_model"] = base_model
    front["tags"] = [tag for tag in ("sordino", "expertise", metadata.get("concept", "")) if tag]
    return _card(front, body)


def _card(front: Mapping[str, Any], body: str) -> str:
    return f"---\n{ModelCardData(**front).to_yaml()}\n---\n\n{body.lstrip()}"
