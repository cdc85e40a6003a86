"""The model card of a dampened model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from sordino.evaluation import Evaluation
from sordino.report import outcome

_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")


def model_card(
    provenance: Mapping[str, Any],
    evaluation: Evaluation | None = None,
    base_card: str | None = None,
    file: str = "",
) -> str:
    """The model card of a dampened model, Markdown with YAML in front.

    Args:
        provenance: What `sordino.json` says; see `sordino.edits.provenance`.
        evaluation: What changed, or None where nothing was measured.
        base_card: The original model's card, from which licence and language are taken.
        file: The GGUF file's name, of a model that is one.
    """
    environment = Environment(
        loader=PackageLoader("sordino.report"),
        autoescape=False,  # noqa: S701 (Markdown, not HTML; `line` tames what comes from outside)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    base, rows = front_matter(base_card), outcome.rows(evaluation)
    body = environment.get_template("card.md.jinja").render(
        title=f"{_display_name(provenance)}, {line(_concept(provenance))} turned down",
        did=_did(provenance),
        file=file,
        rows=[row for row in rows if not row.figure.detail],
        details=sum(row.figure.detail for row in rows),
        not_run=[
            (family.title, line(family.not_run))
            for family in outcome.families(evaluation)
            if family.not_run
        ],
        caption=outcome.CAPTION,
        damage=outcome.damage(rows),
        made=_made(provenance),
        protocol=[
            (
                line(name),
                [(line(key), line(_homeless(value))) for key, value in settings.items()],
            )
            for name, settings in outcome.protocol(evaluation).items()
        ],
        limits=outcome.limits(evaluation),
        licence=(
            f"The original model's licence ({base['license']}) holds for this one."
            if "license" in base
            else "The original model's licence holds for this one; its card named none that could "
            "be taken over here."
        ),
    )
    front: dict[str, Any] = {key: base[key] for key in _INHERITED if key in base}
    if provenance["model"]["revision"]:
        # Only a model of the hub has a name there.
        front["base_model"] = provenance["model"]["name"]
    data = ModelCardData(
        **front, library_name="gguf" if file else "transformers", tags=_tags(provenance, base)
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def front_matter(card: str | None) -> dict[str, Any]:
    """The YAML in front of a card; empty where there is none that can be read."""
    if card is None or not card.lstrip().startswith("---"):
        return {}
    try:
        found: dict[str, Any] = ModelCard(card, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError):
        return {}
    return found


def _tags(provenance: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    own = ["sordino", provenance["intervention"]["name"], _concept(provenance)]
    return list(dict.fromkeys([*own, *map(str, base.get("tags", []))]))


def _concept(provenance: Mapping[str, Any]) -> str:
    return str(provenance["expertise"].get("concept", "a concept"))


def _display_name(provenance: Mapping[str, Any]) -> str:
    return line(_homeless(str(provenance["model"]["name"])))


def _homeless(value: str) -> str:
    """A path without the folders of the machine that it was on; any other text as it is."""
    return Path(value).name if value.startswith(("/", "~", "./", "../")) else value


def _did(provenance: Mapping[str, Any]) -> str:
    intervention = provenance["intervention"]
    shifted = any("shift" in site for site in provenance["sites"].values())
    how = "multiplied by a factor or shifted" if shifted else "multiplied by a factor other than 1"
    return (
        f"{_display_name(provenance)} with the neurons that recognise "
        f"**{line(_concept(provenance))}** turned down in its weights: "
        f"{provenance['changed']:,} of {provenance['neurons']:,} neurons were {how} "
        f"({intervention['name']}, strength {intervention['strength']:g}). "
        "A neuron is an output of a linear layer."
    )


def _made(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, intervention = provenance["model"], provenance["intervention"]
    expertise = provenance["expertise"]
    facts = {
        "Original": _display_name(provenance),
        "Revision": model["revision"],
        "SHA-256 over the original's weights (sampled)": model["weights_fingerprint"],
        "Intervention": f"{intervention['name']}, strength {intervention['strength']:g}",
        **{f"Setting {key}": value for key, value in intervention["settings"].items()},
        "Concept": _concept(provenance),
        "Sentences with it": expertise.get("n_positive", ""),
        "Sentences without": expertise.get("n_negative", ""),
        "SHA-256 over the sentences": expertise.get("concept_fingerprint", ""),
        "Pooling": expertise.get("pooling", ""),
        "Tokens of a sentence, at most": expertise.get("max_tokens", ""),
        "Sordino": provenance["sordino_version"],
        "Date": provenance["created"],
    }
    return [(key, line(str(value))) for key, value in facts.items() if value != ""]


def line(text: str) -> str:
    """Text that stays inside one line and one table cell, and brings no HTML with it."""
    flat = " ".join(text.split())
    return flat.replace("|", "\\|").replace("<", "&lt;")
