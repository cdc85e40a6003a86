"""The README.md that is pushed, with the metadata for the hub."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sordino import hub
from sordino.edits.formats import FORMATS
from sordino.edits.provenance import plain_card
from sordino.edits.record import Provenance
from sordino.errors import UserError
from sordino.evaluation import Evaluation
from sordino.expertise import Expertise
from sordino.files import printable
from sordino.interventions import Dampening
from sordino.markdown import body, front_matter, line, with_front
from sordino.report.card import inherit, model_card
from sordino.report.text import dampening_lines, expertise_lines
from sordino.templates import environment

_FOLDER = "path/to/this/folder"
_TERMS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class About:
    """The user's statements about a repository.

    Args:
        repository: Its name, "org/name".
        license: The original's licence, by the hub's name for it; None if its card names it.
        base_model: The hub's name of the original; None if the record has it.
    """

    repository: str
    license: str | None = None
    base_model: str | None = None


def of_model(record: Provenance, card: str, base_card: str, about: About) -> str:
    """The card of a dampened model or an adapter, with complete metadata.

    Args:
        record: The record in `sordino.json`.
        card: The card, from `make_cards` or in somebody's own words.
        base_card: The original's card; "" if it has none.
        about: The user's statements.

    Raises:
        UserError: The original's licence is unknown.
    """
    own = front_matter(card)
    base_model = about.base_model or own.get("base_model")
    terms = {key: of[key] for of in (inherit(base_card), own) for key in _TERMS if key in of}
    if about.license:
        terms = {"license": about.license}
    elif "license" not in terms and isinstance(base_model, str) and hub.reachable():
        terms = _terms_on_the_hub(base_model)
    if "license" not in terms:
        raise UserError(
            f"No card names the licence of {printable(record.model.name)}: pass it, as "
            "in `license=apache-2.0` (or gemma, llama3.2, other, …)."
        )
    front = {**own, **terms, **({"base_model": base_model} if base_model else {})}
    tags = own.get("tags")
    front["tags"] = list(dict.fromkeys([*(tags if isinstance(tags, list) else []), *_tags(record)]))
    return with_front(front, body(card).replace(_FOLDER, about.repository))


def make_cards(
    record: Provenance, evaluation: Evaluation | None, base_card: str, file: str = ""
) -> list[str]:
    """The cards that Sordino writes for a record: the fullest, then those of earlier steps.

    Args:
        record: The record in `sordino.json`.
        evaluation: The figures before and after; None if they were not measured.
        base_card: The original's card; "" if it has none.
        file: The name of a GGUF file; "" for a folder.
    """
    written = FORMATS.named(record.written_as)
    if not written.is_model:
        return [(written.card or plain_card)(record)]
    found = [model_card(record, one, base_card, file) for one in (evaluation, None)]
    return [*found, plain_card(record)]


def _terms_on_the_hub(base_model: str) -> dict[str, Any]:
    from huggingface_hub import HfApi

    try:
        data = HfApi().model_info(base_model).card_data
    except (*hub.failures(), *hub.ODD_ANSWERS):
        return {}
    known = data.to_dict() if data else {}
    return {key: known[key] for key in _TERMS if key in known}


def _tags(record: Provenance) -> list[str]:
    expertises = [record.expertise, *(part.expertise for part in record.parts)]
    concepts = [expertise.get("concept", "") for expertise in expertises]
    return [printable(tag) for tag in ("sordino", record.intervention.name, *concepts) if tag]


def of_expertise(expertise: Expertise, file: str, about: About) -> str:
    """The card of an expertise, from its metadata."""
    metadata = expertise.metadata
    return _statistics(
        f"How well the neurons of {metadata['model']} recognise {metadata['concept']}",
        "One number for each neuron and statistic, above all the AUROC of its response as a "
        "classifier of the concept's sentences. The file holds no weights and no sentences.",
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
        "One factor for each neuron, by which its output is multiplied, and with some rules a "
        "shift. The file holds no weights and no sentences.",
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
    model = metadata.get("model", "MODEL")
    base_model = about.base_model or (model if metadata.get("revision") else None)
    template = environment("sordino.sharing", html=False).get_template("statistics.md.jinja")
    text = template.render(
        title=line(title),
        what=what,
        lines=[line(text) for text in lines],
        model=shlex.quote(printable(base_model or model)),
        repository=about.repository,
        file=line(file),
        made=[(line(key), line(value)) for key, value in sorted(metadata.items())],
        statistics=list(map(line, statistics)),
    )
    front: dict[str, Any] = {"library_name": "sordino"}
    if about.license:
        front["license"] = about.license
    if base_model:
        front["base_model"] = base_model
    concept = printable(metadata.get("concept", ""))
    front["tags"] = [tag for tag in ("sordino", "expertise", concept) if tag]
    return with_front(front, text)
