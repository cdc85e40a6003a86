"""Find a concept's neurons: the sweep from sentences to expertise."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from sordino import progress as show
from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import AttributionSettings, attribute, attributed
from sordino.expertise.auroc import STRONGEST, auroc, strongest
from sordino.expertise.moments import moments
from sordino.expertise.passes import LayerByLayer, Pass, WholeForward, layers_run_alone
from sordino.expertise.plan import Plan, make_plan, measured, size
from sordino.expertise.pooling import FEWEST_SENTENCES, NOT_REACHED, Capture, pooling_named
from sordino.expertise.ranks import Ranks
from sordino.expertise.snapshot import SWEEP, Progress, Snapshots
from sordino.expertise.states import InFiles, InMemory, States
from sordino.expertise.strata import LENGTH, length_classes, stratified_auroc
from sordino.files import drop_link, fingerprint, only_one, staging_path, today
from sordino.models.memory import available
from sordino.models.open import OpenModel, choose_devices, fits, open_model, streamable
from sordino.models.reference import ModelRef, place_of, resolve
from sordino.models.sites import Site
from sordino.models.tokenise import Batch, encode_for, equal_length_batches
from sordino.outputs import EXPERTISE, claim_output
from sordino.version import __version__

# Hidden states wait in files if they took more than one part in so many of the free memory.
_SHARE_OF_STATES = 4


@dataclass(frozen=True)
class SweepSettings:
    """What the responses depend on beside the model and the sentences.

    Args:
        max_tokens: Sentences are cut at so many tokens.
        pooling: "max" (the paper's), "mean" or "last".
        batch_tokens: A batch holds sentences of one length, at most so many tokens together.
        stratify: Also take the AUROC within strata: "length" (in tokens) or "column" (the concept's
            own strata); "" for no strata.
        moments: Also take the classes' means and the affine map between them.
    """

    max_tokens: int = 128
    pooling: str = "max"
    batch_tokens: int = 2048
    stratify: str = ""
    moments: bool = False

    def __post_init__(self) -> None:
        pooling_named(self.pooling)
        if self.stratify not in ("", LENGTH, "column"):
            raise ValueError(f"stratify is '', 'length' or 'column', not '{self.stratify}'")
        if self.moments and self.pooling != "mean":
            # A map between the classes' largest outputs lies far off at most tokens.
            raise UserError(
                "Shifts are made from mean responses, not from the largest: give --pooling mean."
            )
        if self.max_tokens < 1:
            raise UserError(f"--max-tokens {self.max_tokens} leaves nothing: give at least 1.")
        if self.batch_tokens < 1:
            raise UserError(f"--batch-tokens {self.batch_tokens} is too small: give at least 1.")


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
    output: str | Path | None = None,
    force: bool = False,
) -> Expertise:
    """Measure every neuron's expertise about a concept.

    Args:
        model: What `sordino.open_model` takes, or an open model.
        concept: The labelled sentences.
        device: See `open_model`.
        dtype: See `open_model`.
        revision: See `open_model`.
        sites: See `open_model`.
        stream: Read the weights layer by layer from their files, so that only two layers are in
            memory; None: if the model does not fit into memory.
        settings: Truncation, pooling, batch size, and further statistics of the responses.
        attribution: Also measure attribution and cost (which takes gradients), like this.
        output: Where to save the artefact. With it, an interrupted call loses at most half a
            minute of work: the same call goes on from there.
        force: Replace `output` if it exists.

    Raises:
        UserError: An input cannot be used; nothing was written.

    Example:
        >>> found = sordino.find_experts("tiny", concept, output="x.expertise.safetensors")
        >>> site, neuron, auroc = found.top(1)[0]
        >>> auroc > 0.5
        True
    """
    chosen = settings or SweepSettings()

    def opened() -> OpenModel:
        return open_model(
            model, device=device, dtype=dtype, revision=revision, sites=sites, stream=stream
        )

    if output is None:
        return sweep(opened(), concept, chosen, attribution)
    ranks = Ranks()
    target = claim_output(output, EXPERTISE, force=force, inputs=[place_of(model)])
    with only_one(target) if ranks.first else nullcontext(), ranks.together():
        work = drop_link(staging_path(target).with_suffix(".work")) / ranks.name
        expertise = sweep(opened(), concept, chosen, attribution, work)
        if ranks.first:
            expertise.save(target, force=force)
        ranks.wait()  # nobody forgets what it has before the result is safe
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
) -> Plan:
    """What `find_experts` with the same arguments will take: tokens, bytes, memory and time.

    A transformers folder is not opened as a whole for this: one layer is read and run.

    Raises:
        UserError: An input cannot be used.

    Example:
        >>> sordino.plan_find("tiny", concept).sentences
        50
    """
    ref = resolve(model, revision)
    chosen = settings or SweepSettings()
    if stream is None:
        stream = streamable(ref) and not fits(ref, choose_devices(device), dtype)
    opened = open_model(
        ref, device=device, dtype=dtype, sites=sites, stream=stream or streamable(ref)
    )
    batches, attributing = _batches(opened, concept, chosen, attribution)[1:]
    in_files = stream or _are_many(opened, batches)
    plan = make_plan(opened, batches, attributing, streamed=stream, in_files=in_files)
    return measured(plan, opened, batches, attributing)


def sweep(
    opened: OpenModel,
    concept: Concept,
    settings: SweepSettings,
    attribution: AttributionSettings | None = None,
    work: Path | None = None,
) -> Expertise:
    """Run all sentences past all sites and keep what their responses say of each neuron.

    Several processes (`sordino.expertise.ranks`) come to the same expertise together, each of them.

    Args:
        opened: The model.
        concept: The labelled sentences.
        settings: Truncation, pooling, batch size, and further statistics of the responses.
        attribution: Also measure attribution and cost, like this.
        work: The folder where progress is kept, so that an interrupted sweep goes on; the caller
            removes it when the result is safe.
    """
    encoded, batches, attributing = _batches(opened, concept, settings, attribution)
    strata = _strata(concept, settings, encoded)
    ranks = Ranks()
    metadata = _metadata(opened, concept, settings, attribution)
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
            shutil.rmtree(folder, ignore_errors=True)  # left by a sweep that was another one
            restored = Progress()
        begun = (restored.stage, restored.batch) != (0, 0)
        in_files = (
            opened.streamed is not None
            or _are_many(opened, batches)
            or (begun and not restored.hidden)  # that is where they are
        )
        streamed = opened.streamed is not None
        plan = make_plan(opened, batches, attributing, streamed=streamed, in_files=in_files)
        show.note(
            f"{plan.tokens:,} tokens in {plan.batches:,} batches; "
            f"at most {size(plan.peak)} of memory"
        )
        if restored.phase == SWEEP:
            mine = ranks.deal(batches)
            tokens = [batch.tokens for batch in mine]
            states = InFiles(folder / "states", tokens, opened.device) if in_files else InMemory()
            with torch.inference_mode():
                statistics = _measure(
                    *(opened, concept.labels, strata, batches, settings),
                    *(states, snapshots, restored, ranks),
                )
            restored = Progress(statistics=statistics)
        statistics = dict(restored.statistics)
        if attribution is not None:
            statistics |= attribute(
                opened,
                attributing,
                attribution.seed,
                folder=folder / "attribution",
                snapshots=snapshots,
                restored=restored,
                ranks=ranks,
            )
    if opened.streamed is not None:
        opened.streamed.release()
    return Expertise(_by_site(opened.sites, statistics), metadata)


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        yield work
        return
    with TemporaryDirectory(prefix="sordino-") as folder:
        yield Path(folder)


def _batches(
    opened: OpenModel,
    concept: Concept,
    settings: SweepSettings,
    attribution: AttributionSettings | None,
) -> tuple[list[list[int]], list[Batch], list[tuple[str, Batch]]]:
    """The sentences' tokens, the sweep's batches, and those of attribution by its statistics."""
    encoded = encode_for(opened, concept.sentences, settings.max_tokens)
    batches = equal_length_batches(encoded, settings.batch_tokens)
    if attribution is None:
        return encoded, batches, []
    limits = settings.max_tokens, settings.batch_tokens
    return encoded, batches, attributed(opened, concept, attribution, *limits)


def _are_many(opened: OpenModel, batches: Sequence[Batch]) -> bool:
    """Whether hidden states of all tokens would take much of the free memory."""
    width = opened.model.config.get_text_config(decoder=True).hidden_size
    tokens = sum(batch.tokens for batch in batches)
    taken = tokens * width * opened.model.dtype.itemsize
    return taken > available(opened.device) // _SHARE_OF_STATES


def _strata(
    concept: Concept, settings: SweepSettings, encoded: Sequence[Sequence[int]]
) -> NDArray[np.int64] | None:
    if not settings.stratify:
        return None
    if settings.stratify == LENGTH:
        return length_classes([len(ids) for ids in encoded])
    if not concept.strata:
        raise UserError(
            f"The concept '{concept.name}' has no strata: give --stratify length, or a column of "
            "its data."
        )
    return np.unique(concept.strata, return_inverse=True)[1]


def _measure(
    opened: OpenModel,
    labels: NDArray[np.bool_],
    strata: NDArray[np.int64] | None,
    batches: Sequence[Batch],
    settings: SweepSettings,
    states: States,
    snapshots: Snapshots,
    restored: Progress,
    ranks: Ranks,
) -> dict[str, torch.Tensor]:
    """The sweep itself; statistics by "site.statistic"."""
    mine = ranks.deal(batches)
    way = _choose_pass(opened, mine, len(labels), states)
    # Responses lie in the batches' order, so that a batch fills consecutive rows.
    order = np.array([index for batch in batches for index in batch.indices])
    rows = ranks.rows([len(batch.indices) for batch in batches])
    starts = np.cumsum([0, *(len(batch.indices) for batch in mine)])
    for index, state in enumerate(restored.hidden):
        # Those that have passed the running stage are before the next one.
        before = restored.stage + (index < restored.batch)
        way.states.write(str(before), index, state.to(opened.device))
    statistics = dict(restored.statistics)
    capture = Capture(settings.pooling)
    per_stage = sum(batch.tokens for batch in mine)
    before = restored.stage * per_stage + sum(b.tokens for b in mine[: restored.batch])
    total = len(way.stages) * per_stage
    with show.track(_label(way), total, "tokens·layers", before) as advance:
        for stage in range(restored.stage, len(way.stages)):
            buffers = _buffers(way.stages[stage], int(starts[-1]), opened)
            first = 0
            if stage == restored.stage and restored.responses:
                first = restored.batch
                for site, buffer in buffers.items():
                    buffer.copy_(restored.responses[site.path])
            with capture.hooked(opened.model, buffers):
                for index in range(first, ranks.rounds(len(batches))):
                    if index < len(mine):  # the last round may have too few for all
                        capture.rows(int(starts[index]), *mine[index].input_ids.shape)
                        way.run(stage, index)
                        capture.check()
                        advance(mine[index].tokens)
                    if ranks.all(snapshots.due()):
                        responses = {site.path: buffer for site, buffer in buffers.items()}
                        hidden, files = way.states.secure(), way.states.sums()
                        snapshots.save(
                            Progress(stage, index + 1, hidden, responses, statistics, files=files)
                        )
            for site, buffer in buffers.items():
                responses_here = ranks.exchange(buffer, rows)
                _report_non_finite(site, responses_here)
                if site.experts:
                    widths = _widths(site, ranks.share(site.neurons))
                    found = _of_experts(responses_here, widths, labels, strata, order, settings)
                else:
                    found = _statistics(responses_here, labels, strata, order, settings)
                joined = ranks.joined(found)
                _report_not_reached(site, joined["auroc"])
                statistics |= {f"{site.path}.{name}": value for name, value in joined.items()}
            if isinstance(way.states, InFiles):
                # A snapshot that needs them could still be there: it is replaced first.
                needed = (str(stage + 1),) if stage + 1 < len(way.stages) else ()
                hidden, files = way.states.secure(), way.states.sums()
                snapshots.save(
                    Progress(
                        *(stage + 1, 0, hidden),
                        statistics=statistics,
                        files=files,
                        needed=needed,
                    )
                )
                way.states.keep(*needed)
    way.states.keep()
    return statistics


def _choose_pass(
    opened: OpenModel, batches: Sequence[Batch], sentences: int, states: States
) -> Pass:
    if layers_run_alone(opened, batches):
        return LayerByLayer(opened, batches, states)
    if opened.streamed is not None:
        raise UserError(
            f"{type(opened.model).__name__}: its layers share what they compute and cannot be run "
            "one by one, so that it cannot be streamed: use a machine whose memory holds the "
            "whole model, with --no-stream."
        )
    show.note(
        f"{type(opened.model).__name__}: its layers cannot be run one by one, so the whole "
        "forward is used."
    )
    return WholeForward(opened, batches, sentences)


def _label(way: Pass) -> str:
    return "find, layer by layer" if isinstance(way, LayerByLayer) else "find"


def _buffers(sites: Sequence[Site], sentences: int, opened: OpenModel) -> dict[Site, torch.Tensor]:
    """Responses are kept in float32 whatever the model's dtype: coarser ones make false ties."""
    return {
        site: torch.empty(
            sentences, site.neurons, dtype=torch.float32, device=opened.device_of(site.path)
        )
        for site in sites
    }


def _statistics(
    responses: torch.Tensor,
    labels: NDArray[np.bool_],
    strata: NDArray[np.int64] | None,
    order: NDArray[np.int64],
    settings: SweepSettings,
) -> dict[str, torch.Tensor]:
    """What one site's responses say of each of its neurons, by statistic.

    Args:
        responses: float32 [sentences, neurons], in the batches' order, on the model's device.
        labels: bool [sentences], in the concept's order, as the strata are.
        strata: int64 [sentences], or None.
        order: Which sentence of the concept each row is.
        settings: Which statistics are wanted.
    """
    ranked = labels[order]
    found: dict[str, NDArray[np.generic]] = {"auroc": auroc(responses, ranked).astype(np.float32)}
    if strata is not None:
        within = stratified_auroc(responses, ranked, strata[order])
        found["stratified_auroc"] = within.astype(np.float32)
    if settings.moments:
        found |= moments(responses, ranked)
    best = strongest(responses)
    sentences = np.where(best >= 0, order[best], -1).astype(np.int32)
    found |= {f"strongest_{rank + 1}": sentences[rank].copy() for rank in range(STRONGEST)}
    return {name: torch.from_numpy(values) for name, values in found.items()}


def _widths(site: Site, share: slice) -> list[int]:
    """How many of these neurons of MoE experts belong to one expert, to the next, and so on."""
    width = site.neurons // site.experts
    ends = [*range(share.start // width * width + width, share.stop, width), share.stop]
    return [end - start for start, end in pairwise([share.start, *ends])]


def _of_experts(
    responses: torch.Tensor,
    widths: Sequence[int],
    labels: NDArray[np.bool_],
    strata: NDArray[np.int64] | None,
    order: NDArray[np.int64],
    settings: SweepSettings,
) -> dict[str, torch.Tensor]:
    """The same for MoE experts, each by the sentences that reached it alone.

    An expert that was reached by fewer than `FEWEST_SENTENCES` of a class gets no statistics
    (not-a-number), so that its neurons stay as they are.

    Args:
        responses: As for `_statistics`, `NOT_REACHED` where a sentence did not reach the expert.
        widths: How many neurons belong to each expert.
        labels: As for `_statistics`, as the rest.
    """
    parts: list[dict[str, torch.Tensor]] = []
    for block in responses.split(list(widths), dim=1):
        reached = (block[:, 0] != NOT_REACHED).cpu().numpy()
        if not _are_enough(order[reached], labels, strata):
            # Of any two sentences, for their names and types.
            any_two = np.array([np.argmax(labels), np.argmin(labels)])
            one = None if strata is None else np.zeros_like(strata)
            found = _statistics(torch.zeros_like(block[:2]), labels, one, any_two, settings)
            parts.append({name: _nothing(values) for name, values in found.items()})
            continue
        rows = torch.from_numpy(reached).to(block.device)
        parts.append(_statistics(block[rows], labels, strata, order[reached], settings))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _are_enough(
    sentences: NDArray[np.int64], labels: NDArray[np.bool_], strata: NDArray[np.int64] | None
) -> bool:
    """Whether these sentences can tell anything of an expert that only they reached."""
    classes = [sentences[labels[sentences] == label] for label in (True, False)]
    if min(map(len, classes)) < FEWEST_SENTENCES:
        return False
    return strata is None or bool(np.intersect1d(*(strata[of_class] for of_class in classes)).size)


def _nothing(values: torch.Tensor) -> torch.Tensor:
    return torch.full_like(values, torch.nan if values.is_floating_point() else -1)


def _by_site(
    sites: Sequence[Site], statistics: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, NDArray[np.generic]]]:
    found: dict[str, dict[str, NDArray[np.generic]]] = {site.path: {} for site in sites}
    for name, values in statistics.items():
        site, _, statistic = name.rpartition(".")
        found[site][statistic] = values.numpy()
    return found


def _report_non_finite(site: Site, responses: torch.Tensor) -> None:
    """Say which site gave responses that are infinite or no numbers, and what becomes of them."""
    if not site.experts and bool(torch.stack(responses.aminmax()).isfinite().all()):
        return
    bad = ~responses.isfinite()
    if site.experts:
        bad &= responses != NOT_REACHED
        if not bad.any():
            return
    nan = int(responses.isnan().any(dim=0).sum())
    fate = f", {nan} of which get no AUROC and stay as they are" if nan else ""
    show.note(
        f"warning: {site.path}: {int(bad.sum())} responses of {int(bad.any(dim=0).sum())} neurons "
        f"are not finite{fate}."
    )


def _report_not_reached(site: Site, aurocs: torch.Tensor) -> None:
    """Say how many MoE experts saw too little to be judged."""
    if not site.experts:
        return
    lacking = int(aurocs.view(site.experts, -1).isnan().all(dim=1).sum())
    if lacking:
        show.note(
            f"warning: {site.path}: {lacking} of {site.experts} experts were reached by fewer than "
            f"{FEWEST_SENTENCES} sentences of a class; their neurons stay as they are."
        )


def _metadata(
    opened: OpenModel,
    concept: Concept,
    settings: SweepSettings,
    attribution: AttributionSettings | None,
) -> dict[str, str]:
    more = {"stratify": settings.stratify} if settings.stratify else {}
    if attribution is not None:
        more |= {
            "attribution_per_class": str(attribution.per_class),
            "attribution_seed": str(attribution.seed),
        }
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
