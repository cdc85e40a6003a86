"""The model card of a dampened model."""

import hashlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

from sordino.edits.record import Provenance
from sordino.evaluation import Evaluation
from sordino.evaluation.writing import PRE_PROMPTS
from sordino.expertise.own import own_in_words
from sordino.files import printable
from sordino.folders import Folders, texts
from sordino.interventions.dampening import UsedRule
from sordino.markdown import front_matter, line, with_front
from sordino.report import outcome
from sordino.templates import environment

_OWN_WORDS = "pre_prompt_text"
_SUMMARY = re.compile(r"\d+ characters, SHA-256 [0-9a-f]{64}")
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")


def model_card(
    provenance: Provenance,
    evaluation: Evaluation | None,
    base_card: str | None = None,
    file: str = "",
) -> str:
    """The model card of a dampened model, Markdown with YAML in front.

    Args:
        provenance: The record in `sordino.json`.
        evaluation: The figures before and after; None if nothing was measured.
        base_card: The original model's card, from which licence and language are taken.
        file: The name of a GGUF file; "" for a folder.
    """
    said = without_own_words(evaluation).model_dump(mode="json") if evaluation else {}
    folders = Folders.of_record(provenance.as_json(), texts(said))
    provenance = provenance.cleaned(folders)
    evaluation = Evaluation.model_validate(folders.cleaned(said)) if evaluation else None
    base, rows = inherit(base_card), outcome.rows(evaluation)
    templates = environment("sordino.report", html=False)
    templates.filters["line"] = line
    body = templates.get_template("card.md.jinja").render(
        title=f"{_display_name(provenance)}, {line(provenance.concept)} dampened",
        did=_did(provenance),
        file=shlex.quote(file) if file else "",
        rows=[row for row in rows if not row.figure.detail],
        details=sum(row.figure.detail for row in rows),
        not_run=[
            (line(family.title), line(family.not_run))
            for family in outcome.families(evaluation)
            if family.not_run
        ],
        caption=outcome.CAPTION,
        damage=outcome.damage(rows),
        refusing=list(outcome.refusing(rows, refusals_protected=None).values()),
        made=_list_made(provenance),
        protocol=[
            (
                line(name),
                [(line(key), line(value)) for key, value in settings.items()],
            )
            for name, settings in outcome.protocol(evaluation).items()
        ],
        limits=list(map(line, outcome.limits(evaluation))),
        licence=(
            f"The original model's licence ({line(str(base['license']))}) holds for this one."
            if "license" in base
            else "The original model's licence holds for this one; its card names none."
        ),
    )
    front = dict(base)
    if provenance.model.revision:
        # Only a model of the hub has a revision.
        front["base_model"] = provenance.model.name
    front["library_name"] = "gguf" if file else "transformers"
    front["tags"] = _tags(provenance, front_matter(base_card))
    return with_front(front, body)


def without_own_words(evaluation: Evaluation) -> Evaluation:
    """The same, with a user's own pre-prompt replaced by its length and SHA-256."""
    measures = {
        name: result.model_copy(update={"protocol": _without_own_words(result.protocol)})
        for name, result in evaluation.measures.items()
    }
    return evaluation.model_copy(update={"measures": measures})


def _without_own_words(protocol: Mapping[str, Any]) -> dict[str, Any]:
    text = protocol.get(_OWN_WORDS)
    if not isinstance(text, str) or text in ("", *PRE_PROMPTS.values()) or _SUMMARY.fullmatch(text):
        return dict(protocol)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {**protocol, _OWN_WORDS: f"{len(text)} characters, SHA-256 {digest}"}


def inherit(base_card: str | None) -> dict[str, Any]:
    """The part of the original card's YAML that holds for a changed model as well."""
    base = front_matter(base_card)
    plain = {key: _tame_value(base[key]) for key in _INHERITED if key in base}
    return {key: value for key, value in plain.items() if value}


def _tame_value(value: Any) -> str | list[str]:
    """A text, or the texts in a list; empty for anything else."""
    if isinstance(value, list):
        return [printable(one) for one in value if isinstance(one, str)]
    return printable(value) if isinstance(value, str) else ""


def _tags(provenance: Provenance, base: Mapping[str, Any]) -> list[str]:
    own = ["sordino", provenance.intervention.name, provenance.concept]
    tags = base.get("tags")
    others = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return list(dict.fromkeys(map(printable, [*own, *others])))


def _display_name(provenance: Provenance) -> str:
    return line(provenance.model.name)


def _did(provenance: Provenance) -> str:
    intervention = provenance.intervention
    shifted = any(site.shift for site in provenance.sites.values())
    how = "multiplied by a factor or shifted" if shifted else "multiplied by a factor other than 1"
    return (
        f"{_display_name(provenance)} with the neurons that recognise "
        f"**{line(provenance.concept)}** dampened in its weights: "
        f"{provenance.changed:,} of {provenance.neurons:,} neurons were {how} "
        f"({line(_named(intervention))}). "
        "A neuron is an output of a linear layer."
    )


def _named(rule: UsedRule) -> str:
    """A rule with its strength, which for 1 goes without saying: settings may scale it as well."""
    return rule.name if rule.strength == 1 else f"{rule.name}, strength {rule.strength:g}"


def _list_made(provenance: Provenance) -> list[tuple[str, str]]:
    model, intervention = provenance.model, provenance.intervention
    expertise = provenance.expertise
    facts = {
        "Original": _display_name(provenance),
        "Revision": model.revision,
        "SHA-256 over the original's weights (sampled)": model.weights_fingerprint,
        "Intervention": _named(intervention),
        **{f"Setting {key}": value for key, value in intervention.settings.items()},
        "Concept": provenance.concept,
        "Sentences with it": expertise.get("n_positive", ""),
        "Sentences without": expertise.get("n_negative", ""),
        "SHA-256 over the sentences": expertise.get("concept_fingerprint", ""),
        "Own samples": own_in_words(expertise),
        "Pooling": expertise.get("pooling", ""),
        "Most tokens per sentence": expertise.get("max_tokens", ""),
        "Sordino": provenance.sordino_version,
        "Date": provenance.created,
    }
    return [(line(key), line(str(value))) for key, value in facts.items() if value != ""]
