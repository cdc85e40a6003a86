"""From an expertise to the explorer's page."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sordino.concepts import Concept, load_concept
from sordino.concepts.built_in import BUILT_IN
from sordino.edits.provenance import extras_of
from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.extras import require
from sordino.files import has_suffix, user_path, write_text
from sordino.interventions import RULES, dampen
from sordino.models.dtypes import COMPUTE_DTYPES
from sordino.models.open import OpenModel, open_model
from sordino.models.reference import ModelRef, resolve
from sordino.outputs import PAGE, claim_output
from sordino.progress import note
from sordino.report.exemplars import refuse_other_sentences
from sordino.report.explorer.comparison import Comparison, compare
from sordino.report.explorer.insight import Insight, insights
from sordino.report.explorer.page import Exploration, render
from sordino.report.explorer.subject import (
    Derivation,
    Subject,
    concept_of_run,
    read_subject,
    refuse_foreign,
)


@dataclass(frozen=True)
class Explored:
    """The result of `explore`.

    Args:
        page: The HTML file.
        size: Its size in bytes.
        neurons: How many neurons the map has.
        shown: How many neurons are shown in detail, with their sentences, curves and words.
        without: Why none are shown in detail; "" if some are.
        comparison: The comparison with a second subject, or None.
    """

    page: Path
    size: int
    neurons: int
    shown: int
    without: str
    comparison: Comparison | None


@dataclass(frozen=True)
class _Look:
    """How the top neurons are shown in detail."""

    model: str | Path | ModelRef | OpenModel | None
    concept: Concept | None
    neurons: int
    sentences: int
    device: str
    dtype: str
    revision: str | None


def explore(
    subject: str | Path | Expertise | Subject,
    second: str | Path | Expertise | Subject | None = None,
    *,
    output: str | Path | None = None,
    intervention: str = "aura",
    strength: float = 1.0,
    settings: Mapping[str, Any] | None = None,
    model: str | Path | ModelRef | OpenModel | None = None,
    concept: Concept | Callable[[], Concept] | None = None,
    top: int = 24,
    sentences: int = 3,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    force: bool = False,
    inputs: Iterable[object] = (),
) -> Explored:
    """Write one HTML page that shows every neuron of an expertise.

    Args:
        subject: An expertise, its file, or a folder or ".gguf" file that `sordino run` wrote.
        second: Another subject with the same sites, for a comparison: another concept in the same
            model, or another model of the same shape.
        output: The HTML file. If None, it is beside `subject`, which must be a file or folder.
        intervention: The rule that turns an expertise into factors. A baked model has its own.
        strength: See `Dampening.scaled`.
        settings: The rule's own settings.
        model: The model that the expertise was found on. If None, the one that it names.
        concept: The sentences that it was found with, or a function that loads them once the output
            is known to be free. If None, those of the run's recipe, or the built-in concept that
            the expertise names.
        top: How many neurons, from the highest AUROC down, are shown in detail. With 0, neither
            the model nor the sentences are needed.
        sentences: How many of the sentences that excite a neuron most are shown, and how many of
            those that excite it least.
        device: See `sordino.open_model`.
        dtype: See `sordino.open_model`; "auto" is the one that the expertise was found in.
        revision: See `sordino.open_model`.
        force: Replace an existing page.
        inputs: Files that the page must not replace.

    Returns:
        Where the page is and what it shows. If neither `model` nor `concept` is given and what the
        expertise names is not available or differs, no neuron is shown in detail, and the page
        says why.

    Raises:
        UserError: An input cannot be used, or `output` exists and `force` is not set.

    Example:
        >>> explored = sordino.explore(expertise, concept=concept, output="x.html", top=2)
        >>> explored.shown
        2
    """
    require("report", "The page of an expertise")
    if top < 0 or sentences < 1:
        raise UserError("`top` takes 0 or more, and `sentences` 1 or more.")
    read = [one for one in (subject, second, model, *inputs) if isinstance(one, str | Path)]
    output = page_beside(subject) if output is None else output
    target = claim_output(output, PAGE, force=force, inputs=read)
    one = read_subject(subject, _rule(intervention, strength, settings or {}))
    other = None if second is None else read_subject(second, None)
    comparison = None if other is None else compare(one.expertise, other.expertise)
    labelled = None
    if top:
        labelled = concept() if callable(concept) else concept
        if labelled is None and isinstance(subject, str | Path):
            labelled = concept_of_run(subject, one.expertise)
    look = _Look(model, labelled, top, sentences, device, dtype, revision)
    found, without = _closer(one.expertise, look)
    page = render(Exploration(one, tuple(found), without, other, comparison))
    write_text(target, page, force=force)
    return Explored(
        target, target.stat().st_size, one.expertise.neurons, len(found), without, comparison
    )


def _rule(name: str, strength: float, settings: Mapping[str, Any]) -> Derivation | None:
    """The rule; None for the defaults, with which a baked model is shown as it was baked."""
    if (name, strength, dict(settings)) == ("aura", 1, {}):
        return None
    RULES.named(name).refuse_unknown(settings)
    return partial(dampen, rule=name, strength=strength, **settings)


def known_concept(expertise: Expertise) -> Concept | None:
    """The built-in concept that an expertise names, if it still has the same sentences.

    Raises:
        UserError: There is such a concept, and its data are not available.
    """
    metadata = expertise.metadata
    if metadata["concept"] not in BUILT_IN:
        return None
    sizes = [int(metadata.get(key, 0)) for key in ("n_positive", "n_negative")]
    balanced = sizes[0] == sizes[1]
    found = load_concept(metadata["concept"], max_per_class=max(sizes) or None, balance=balanced)
    return found if found.fingerprint == metadata["concept_fingerprint"] else None


def page_beside(subject: str | Path | Expertise | Subject) -> Path:
    """The default place of a subject's page.

    Raises:
        UserError: There is no such file or folder.
    """
    if isinstance(subject, Expertise | Subject):
        raise UserError("An expertise in memory needs an output for its page: pass `output`.")
    path = user_path(subject)
    if path.is_dir() or has_suffix(path, ".gguf"):
        refuse_foreign(path)
        return extras_of(path) / "explorer.html"
    name = path.name.removesuffix(".safetensors").removesuffix(".expertise")
    return path.with_name(f"{name}.explorer.html")


def _closer(expertise: Expertise, look: _Look) -> tuple[list[Insight], str]:
    """The top neurons in detail, or why there are none.

    A model or concept that was passed and does not fit is an error; one that the expertise only
    names is not.
    """
    if not look.neurons:
        return [], "none were asked for."
    concept = look.concept
    if concept is None:
        try:
            concept = known_concept(expertise)
        except UserError as error:
            return [], f"the sentences are not available: {error}"
        if concept is None:
            return [], (
                f"the sentences of “{expertise.shown['concept']}” are not available: pass the "
                "concept, with the options with which it was found."
            )
    refuse_other_sentences(concept, expertise)  # before a model is opened for it
    try:
        opened = _open(expertise, look)
    except UserError as error:
        if look.model is not None:
            raise
        return [], f"the model is not available: {error}"
    note(f"running the top {look.neurons} neurons on {len(concept.sentences):,} sentences")
    found = insights(opened, concept, expertise, neurons=look.neurons, sentences=look.sentences)
    return found, "" if found else "no neuron has an AUROC."


def _open(expertise: Expertise, look: _Look) -> OpenModel:
    metadata = expertise.metadata
    given = look.model
    if isinstance(given, OpenModel):
        return given
    revision = look.revision or (metadata.get("revision") if given is None else None) or None
    ref = resolve(metadata["model"] if given is None else given, revision)
    if ref.weights_fingerprint() != metadata["weights_fingerprint"]:
        raise UserError(
            f"{ref.name} has other weights than the model that the expertise was found on "
            f"({expertise.shown['model']}): pass that one as `model`."
        )
    dtype = look.dtype
    if dtype == "auto" and metadata.get("dtype") in COMPUTE_DTYPES:
        dtype = metadata["dtype"]
    paths = dict.fromkeys(site for site, _, _ in expertise.top(look.neurons))
    note(f"opening {ref.name}")
    return open_model(
        ref,
        device=look.device,
        dtype=dtype,
        sites=f"^({'|'.join(map(re.escape, paths))})$",
        stream=None,
    )
