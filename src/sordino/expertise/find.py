"""Find a concept's expert neurons: from sentences to an expertise."""

import shutil
from collections.abc import Iterator, Sequence
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
from sordino.expertise.refusals import find_refusals, refuse_speechless
from sordino.expertise.sentences import chat_for, encode_sentences, say_how_read
from sordino.expertise.snapshot import SWEEP, Progress, Snapshots
from sordino.expertise.states import InFiles, InMemory
from sordino.expertise.statistic import Statistic
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
    strata = _strata(concept, settings, encoded)
    ranks = Ranks()
    metadata = _metadata(opened, concept, settings, attribution)
    metadata |= {} if own is None else own.metadata
    key = fingerprint(
        *(f"{k}={v}" for k, v in metadata.items() if k != "created"),
        *(site.path for site in opened.sites),
        str(settings),
        str(attribution),
        str(opened.device),
        torch.__version__,
    )
    with _folder(work) as folder:
        snapshots = Snapshots(None if work is None else folder / "snapshot.safetensors", key)
        restored = snapshots.restore()
        if not ranks.agree(restored and (restored.phase, restored.stage, restored.batch)):
            restored = None
        if restored is None:
            shutil.rmtree(folder, ignore_errors=True)  # left by a different sweep
            restored = Progress()
        begun = (restored.stage, restored.batch) != (0, 0)
        in_files = (
            opened.streamed is not None
            or _are_many(opened, batches)
            or (begun and not restored.hidden)  # they are in files already
        )
        streamed = opened.streamed is not None
        plan = make_plan(
            opened,
            batches,
            attributing,
            streamed=streamed,
            in_files=in_files,
            writes=own is not None or refusals is not None,
        )
        if plan.tokens >= _LONG and not begun and ranks.size == 1:
            plan = measure_time(plan, opened, batches, attributing)
        time = "" if plan.seconds is None else f"; about {duration(plan.seconds)}"
        show.note(
            f"{plan.tokens:,} tokens in {counted(plan.batches, 'batch', 'batches')}; at most "
            f"{size(plan.peak)} of memory{time}"
        )
        if restored.phase == SWEEP:
            sentences = Sentences(concept.labels, strata, batches)
            with torch.inference_mode():
                if settings.causal:
                    swept = causal_sweep(
                        opened, sentences, settings, snapshots=snapshots, restored=restored
                    )
                else:
                    tokens = [batch.tokens for batch in ranks.deal(batches)]
                    waiting = folder / "states"
                    sweep = Sweep(
                        opened,
                        sentences,
                        settings,
                        states=InFiles(waiting, tokens, opened.device) if in_files else InMemory(),
                        snapshots=snapshots,
                        ranks=ranks,
                    )
                    swept = sweep.run(restored)
                restored = Progress(statistics=swept, phase=_SWEPT)
            if own is not None or refusals is not None:
                snapshots.save(restored)  # otherwise a kill during sampling would lose the sweep
        statistics = {site.path: dict(restored.statistics[site.path]) for site in opened.sites}
        at_once = settings.batch_tokens or BATCH_TOKENS
        if refusals is not None:
            refused = find_refusals(
                opened,
                refusals,
                settings.chat,
                journal=refusals.journal or (None if work is None else folder / "refusals.jsonl"),
                ranks=ranks,
            )
            refused.refuse_few()
            ids, starts = [one.ids for one in refused.texts], [one.start for one in refused.texts]
            of, ones = Statistic.REFUSALS, [1] * len(ids)
            attributing = [*attributing, *in_batches(opened, of, ids, starts, ones, at_once)]
            metadata |= refused.metadata
        if own is not None:
            sampled = sample(
                opened,
                own,
                batch_tokens=at_once,
                journal=own.journal or (None if work is None else folder / "own.jsonl"),
                ranks=ranks,
            )
            attributing = [*attributing, *sampled.passages]
            metadata |= sampled.metadata
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
            for path, found in more.items():
                statistics[path] |= found
    if opened.streamed is not None:
        opened.streamed.release()
    arrays = {
        path: {name: values.numpy() for name, values in found.items()}
        for path, found in statistics.items()
    }
    return Expertise(arrays, metadata)


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
