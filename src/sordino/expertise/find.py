"""Find a concept's expert neurons: from sentences to an expertise."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from sordino import progress as show
from sordino.concepts.concept import Concept, refuse_unloaded
from sordino.errors import UserError
from sordino.expertise.artefact import PROTECTION, Expertise
from sordino.expertise.attribution import (
    AttributionSettings,
    Passage,
    attribute,
    in_batches,
    passages,
)
from sordino.expertise.causal import causal_sweep
from sordino.expertise.own import OwnSettings, foretell, sample
from sordino.expertise.plan import SweepPlan, duration, make_plan, measure_time
from sordino.expertise.refusals import RefusalSettings, find_refusals, refuse_speechless
from sordino.expertise.sentences import chat_for, encode_sentences, say_how_read
from sordino.expertise.snapshot import SWEEP, Progress, Snapshots
from sordino.expertise.states import InFiles, InMemory
from sordino.expertise.statistic import Statistic, Tensors
from sordino.expertise.strata import LENGTH, length_classes
from sordino.expertise.sweep import BATCH_TOKENS, Sentences, Sweep, SweepSettings
from sordino.files import counted, drop_link, fingerprint, only_one, size, staging_path, today
from sordino.models.memory import available
from sordino.models.open import OpenModel, has_to_stream, open_model, streamable
from sordino.models.ranks import Ranks
from sordino.models.reference import ModelRef, place_of, resolve
from sordino.models.tokenise import Batch, Placed, equal_length_batches
from sordino.outputs import EXPERTISE, claim_output
from sordino.version import __version__

# The phase of a snapshot between the sweep and attribution.
_SWEPT = "swept"
# Hidden states are kept in files if they would take more than a quarter of the free memory.
_SHARE_OF_STATES = 4
# From this many tokens on a time is estimated, which takes some seconds.
_LONG = 100_000


def find_experts(
    model: str | Path | ModelRef | OpenModel,
    concept: Concept,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    sites: str | None = None,
    stream: bool | None = None,
    settings: SweepSettings | None = None,
    attribution: AttributionSettings | None = None,
    own: OwnSettings | None = None,
    output: str | Path | None = None,
    force: bool = False,
) -> Expertise:
    """Measure every neuron's expertise about a concept that has labels.

    `sordino.find_experts` documents the parameters; this function takes a `Concept` and
    `OwnSettings` only.

    Raises:
        UserError: An input cannot be used; nothing was written.
    """
    chosen = settings or SweepSettings()

    def opened() -> OpenModel:
        return open_model(
            model, device=device, dtype=dtype, revision=revision, sites=sites, stream=stream
        )

    if output is None:
        return measure_expertise(opened(), concept, chosen, attribution, own)
    ranks = Ranks()
    target = claim_output(output, EXPERTISE, force=force, inputs=[place_of(model)])
    with only_one(target) if ranks.first else nullcontext(), ranks.together():
        work = drop_link(staging_path(target).with_suffix(".work")) / ranks.name
        expertise = measure_expertise(opened(), concept, chosen, attribution, own, work)
        if ranks.first:
            expertise.save(target, force=force)
        ranks.wait()  # no rank removes its work before the result is safe
        shutil.rmtree(work.parent, ignore_errors=True)
    return expertise


def plan_find(
    model: str | Path | ModelRef,
    concept: Concept,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    sites: str | None = None,
    stream: bool | None = None,
    settings: SweepSettings | None = None,
    attribution: AttributionSettings | None = None,
    own: OwnSettings | None = None,
) -> SweepPlan:
    """What `find_experts` with the same arguments needs: tokens, bytes, memory and time.

    A transformers folder is not opened as a whole: one layer is read and run. Own samples are
    counted as long as they can become; what the model itself replies to unsafe requests
    (`AttributionSettings.refusals`) is not counted.

    Raises:
        UserError: An input cannot be used.

    Example:
        >>> sordino.plan_find("tiny", concept).sentences
        50
    """
    refuse_unloaded(concept)
    ref = resolve(model, revision)
    _refuse_own_alone(own, attribution)
    refusals = None if attribution is None else attribution.refusals
    chosen = settings or SweepSettings()
    if stream is None:
        stream = has_to_stream(ref, device, dtype)
    opened = open_model(
        ref, device=device, dtype=dtype, sites=sites, stream=stream or streamable(ref)
    )
    batches, attributing = _batches(opened, concept, chosen, attribution)[1:]
    if refusals is not None:
        show.note("the plan leaves out refusals, since they are not written yet")
    if own is not None:
        attributing += foretell(opened, own, chosen.batch_tokens or BATCH_TOKENS)
    in_files = stream or _are_many(opened, batches)
    plan = make_plan(
        opened,
        batches,
        attributing,
        streamed=stream,
        in_files=in_files,
        writes=own is not None or refusals is not None,
    )
    return measure_time(plan, opened, batches, attributing)


def measure_expertise(
    opened: OpenModel,
    concept: Concept,
    settings: SweepSettings,
    attribution: AttributionSettings | None = None,
    own: OwnSettings | None = None,
    work: Path | None = None,
) -> Expertise:
    """Measure every neuron of every site, as `find_experts` does, with an open model.

    With several processes (`sordino.models.ranks`) each returns the same expertise.

    Args:
        opened: The model.
        concept: The labelled sentences.
        settings: See `find_experts`.
        attribution: See `find_experts`.
        own: See `find_experts`.
        work: A folder for progress, so that an interrupted sweep continues; the caller removes it
            when the result is safe.
    """
    _refuse_own_alone(own, attribution)
    refusals = None if attribution is None else attribution.refusals
    if refusals is not None:
        refuse_speechless(opened, settings.chat)
    encoded, batches, attributing = _batches(opened, concept, settings, attribution)
    say_how_read(opened, chat_for(opened, concept, settings.chat), settings.chat)
    sentences = Sentences(concept.labels, _strata(concept, settings, encoded), batches)
    ranks = Ranks()
    metadata = _metadata(opened, concept, settings, attribution)
    metadata |= {} if own is None else own.metadata
    writes = own is not None or refusals is not None
    with _folder(work) as folder:
        key = _key(opened, settings, attribution, metadata)
        snapshots = Snapshots(None if work is None else folder / "snapshot.safetensors", key)
        restored = _restore(snapshots, folder, ranks)
        begun = (restored.stage, restored.batch) != (0, 0)
        in_files = (
            opened.streamed is not None
            or _are_many(opened, batches)
            or (begun and not restored.hidden)  # they are in files already
        )
        plan = make_plan(
            opened,
            batches,
            attributing,
            streamed=opened.streamed is not None,
            in_files=in_files,
            writes=writes,
        )
        if plan.tokens >= _LONG and not begun and ranks.size == 1:
            plan = measure_time(plan, opened, batches, attributing)
        _say_plan(plan)
        if restored.phase == SWEEP:
            swept = _sweep(
                opened,
                sentences,
                settings,
                folder / "states" if in_files else None,
                snapshots=snapshots,
                restored=restored,
                ranks=ranks,
            )
            restored = Progress(statistics=swept, phase=_SWEPT)
            if writes:
                snapshots.save(restored)  # otherwise a kill during sampling would lose the sweep
        statistics = {site.path: dict(restored.statistics[site.path]) for site in opened.sites}
        journals = None if work is None else folder
        if refusals is not None:
            found, about = _take_refusals(opened, refusals, settings, journals, ranks)
            attributing, metadata = [*attributing, *found], metadata | about
        if own is not None:
            found, about = _take_own_samples(opened, own, settings, journals, ranks)
            attributing, metadata = [*attributing, *found], metadata | about
        if attribution is not None:
            more = attribute(
                opened,
                attributing,
                attribution.seed,
                folder=folder / "attribution",
                snapshots=snapshots,
                restored=restored,
                ranks=ranks,
            )
            for path, of_site in more.items():
                statistics[path] |= of_site
    if opened.streamed is not None:
        opened.streamed.release()
    arrays = {
        path: {name: values.numpy() for name, values in of_site.items()}
        for path, of_site in statistics.items()
    }
    return Expertise(arrays, metadata)


def _key(
    opened: OpenModel,
    settings: SweepSettings,
    attribution: AttributionSettings | None,
    metadata: Mapping[str, str],
) -> str:
    """A hash of everything that decides what a snapshot holds."""
    return fingerprint(
        *(f"{k}={v}" for k, v in metadata.items() if k != "created"),
        *(site.path for site in opened.sites),
        str(settings),
        str(attribution),
        str(opened.device),
        torch.__version__,
    )


def _restore(snapshots: Snapshots, folder: Path, ranks: Ranks) -> Progress:
    """Where an interrupted call stood; the beginning if there is none, or if the ranks differ."""
    restored = snapshots.restore()
    agreed = ranks.agree(restored and (restored.phase, restored.stage, restored.batch))
    if restored is not None and agreed:
        return restored
    shutil.rmtree(folder, ignore_errors=True)  # left by a different sweep
    return Progress()


def _say_plan(plan: SweepPlan) -> None:
    time = "" if plan.seconds is None else f"; about {duration(plan.seconds)}"
    show.note(
        f"{plan.tokens:,} tokens in {counted(plan.batches, 'batch', 'batches')}; at most "
        f"{size(plan.peak)} of memory{time}"
    )


def _sweep(
    opened: OpenModel,
    sentences: Sentences,
    settings: SweepSettings,
    waiting: Path | None,
    *,
    snapshots: Snapshots,
    restored: Progress,
    ranks: Ranks,
) -> Tensors:
    """The statistics of the responses; hidden states wait in the folder `waiting`, or in memory."""
    with torch.inference_mode():
        if settings.causal:
            return causal_sweep(opened, sentences, settings, snapshots=snapshots, restored=restored)
        tokens = [batch.tokens for batch in ranks.deal(sentences.batches)]
        states = InMemory() if waiting is None else InFiles(waiting, tokens, opened.device)
        sweep = Sweep(opened, sentences, settings, states=states, snapshots=snapshots, ranks=ranks)
        return sweep.run(restored)


def _take_refusals(
    opened: OpenModel,
    asked: RefusalSettings,
    settings: SweepSettings,
    journals: Path | None,
    ranks: Ranks,
) -> tuple[list[Passage], dict[str, str]]:
    """The model's own refusals for attribution, and their entries in the metadata."""
    journal = asked.journal or (journals and journals / "refusals.jsonl")
    refused = find_refusals(opened, asked, settings.chat, journal=journal, ranks=ranks)
    refused.refuse_few()
    ids, starts = [one.ids for one in refused.texts], [one.start for one in refused.texts]
    at_once = settings.batch_tokens or BATCH_TOKENS
    ones = [1] * len(ids)
    return in_batches(opened, Statistic.REFUSALS, ids, starts, ones, at_once), refused.metadata


def _take_own_samples(
    opened: OpenModel,
    asked: OwnSettings,
    settings: SweepSettings,
    journals: Path | None,
    ranks: Ranks,
) -> tuple[list[Passage], dict[str, str]]:
    """The model's own samples for attribution, and their entries in the metadata."""
    journal = asked.journal or (journals and journals / "own.jsonl")
    at_once = settings.batch_tokens or BATCH_TOKENS
    sampled = sample(opened, asked, batch_tokens=at_once, journal=journal, ranks=ranks)
    return sampled.passages, sampled.metadata


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        yield work
        return
    with TemporaryDirectory(prefix="sordino-") as folder:
        yield Path(folder)


def _refuse_own_alone(own: OwnSettings | None, attribution: AttributionSettings | None) -> None:
    """Raise `UserError` for own samples without attribution, which they are a part of."""
    if own is not None and attribution is None:
        raise UserError("Own samples need attribution: give `attribution`, too.")


def _batches(
    opened: OpenModel,
    concept: Concept,
    settings: SweepSettings,
    attribution: AttributionSettings | None,
) -> tuple[list[Placed], list[Batch], list[Passage]]:
    """The sentences' tokens, the sweep's batches, and attribution's batches."""
    chat = chat_for(opened, concept, settings.chat)
    encoded = encode_sentences(opened, concept, settings.max_tokens, chat)
    if full := sum(len(one.ids) - one.start >= settings.max_tokens for one in encoded):
        show.note(
            f"sentences are cut at {settings.max_tokens:,} tokens: {full:,} of {len(encoded):,} "
            "are cut or end there"
        )
    batches = equal_length_batches(encoded, settings.at_once(opened.device))
    if attribution is None:
        return encoded, batches, []
    limits = settings.max_tokens, settings.batch_tokens or BATCH_TOKENS
    return encoded, batches, passages(opened, concept, attribution, *limits, chat)


def _are_many(opened: OpenModel, batches: Sequence[Batch]) -> bool:
    """Whether hidden states of all tokens would take much of the free memory."""
    width = opened.width
    tokens = sum(batch.tokens for batch in batches)
    taken = tokens * width * opened.model.dtype.itemsize
    return taken > available(opened.device) // _SHARE_OF_STATES


def _strata(
    concept: Concept, settings: SweepSettings, encoded: Sequence[Placed]
) -> NDArray[np.int64] | None:
    if not settings.stratify:
        return None
    if settings.stratify == LENGTH:
        return length_classes([len(one.ids) - one.start for one in encoded])
    if not concept.strata:
        raise UserError(
            f"The concept '{concept.name}' has no strata: give `stratify=\"length\"`, or load it "
            "with a column of its data as strata."
        )
    return np.unique(concept.strata, return_inverse=True)[1]


def _metadata(
    opened: OpenModel,
    concept: Concept,
    settings: SweepSettings,
    attribution: AttributionSettings | None,
) -> dict[str, str]:
    more = {"stratify": settings.stratify} if settings.stratify else {}
    more |= {"causal": settings.causal} if settings.causal else {}
    if chat := chat_for(opened, concept, settings.chat):
        more |= chat.record(opened)
    if attribution is not None:
        more |= {
            "attribution_per_class": str(attribution.per_class),
            "attribution_seed": str(attribution.seed),
        }
        if attribution.protected:
            texts = attribution.protected
            more |= dict(zip(PROTECTION, (str(len(texts)), fingerprint(*texts)), strict=True))
        if attribution.refusals is not None:
            more |= attribution.refusals.metadata
    return {
        "sordino_version": __version__,
        "model": opened.ref.name,
        "revision": opened.ref.revision,
        "architecture": type(opened.model).__name__,
        "weights_fingerprint": opened.ref.weights_fingerprint(),
        "concept": concept.name,
        "concept_source": concept.source,
        "concept_fingerprint": concept.fingerprint,
        "n_positive": str(len(concept.positive)),
        "n_negative": str(len(concept.negative)),
        "pooling": settings.pooling,
        "max_tokens": str(settings.max_tokens),
        "dtype": opened.dtype_name,
        "created": today(),
        **more,
    }
