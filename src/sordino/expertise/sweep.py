"""The sweep: every sentence's responses at every site, and their statistics for each neuron."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from sordino import progress as show
from sordino.errors import UserError, require_at_least
from sordino.expertise.auroc import auroc, strongest
from sordino.expertise.moments import LINEAR_TRANSPORT, MEAN_SHIFT, moments
from sordino.expertise.passes import LayerByLayer, Pass, WholeForward, why_not_alone
from sordino.expertise.pooling import FEWEST_SENTENCES, NOT_REACHED, Capture, pooling_named
from sordino.expertise.snapshot import Progress, Snapshots
from sordino.expertise.states import InFiles, States
from sordino.expertise.statistic import REACHED, STRONGEST, Statistic, Tensors, Values
from sordino.expertise.strata import LENGTH, stratified_auroc
from sordino.files import counted
from sordino.models.chat import AS_SEES_FIT, Chat
from sordino.models.memory import for_device
from sordino.models.open import OpenModel
from sordino.models.ranks import Ranks
from sordino.models.sites import Site
from sordino.models.tokenise import Batch

BATCH_TOKENS = 2048
"""How many tokens at a time suit the processor."""


@dataclass(frozen=True)
class SweepSettings:
    """What the responses depend on besides the model and the sentences.

    Args:
        max_tokens: Sentences are cut at this many tokens.
        pooling: "max" (the paper's), "mean" or "last".
        batch_tokens: A batch holds sentences of one length, at most this many tokens together;
            None: 2,048, on a GPU more, except for attribution, which keeps all layers' outputs.
        stratify: Also compute the AUROC within strata: "length" (in tokens) or "column" (the
            concept's own strata); "" for no strata.
        moments: Also compute the classes' means and the affine map between them.
        chat: How the model's chat template is applied to sentences, of which only their own tokens
            count. "auto" applies it to conversations alone; other sentences are read without it, as
            in the paper.
        causal: "mean_shift" or "linear_transport": the moments of each layer are taken while this
            rule's maps are applied to all layers before it (`sordino.expertise.causal`); "" for the
            unchanged model.

    Raises:
        UserError: A setting is outside its range.

    Example:
        >>> settings = sordino.SweepSettings(pooling="mean", moments=True)
        >>> found = sordino.find_experts("tiny", concept, settings=settings)
        >>> sorted(found["transport_scale"]) == sorted(found.sites)
        True
    """

    max_tokens: int = 128
    pooling: str = "max"
    batch_tokens: int | None = None
    stratify: str = ""
    moments: bool = False
    chat: Chat = AS_SEES_FIT
    causal: str = ""

    def __post_init__(self) -> None:
        pooling_named(self.pooling)
        if self.stratify not in ("", LENGTH, "column"):
            raise ValueError(f"stratify is '', 'length' or 'column', not '{self.stratify}'")
        if self.moments and self.pooling != "mean":
            # A map between the classes' maxima does not fit the outputs of most tokens.
            raise UserError('Shifts are made from mean responses: give `pooling="mean"`.')
        if self.causal not in ("", MEAN_SHIFT, LINEAR_TRANSPORT):
            raise UserError(
                f"`causal={self.causal}` is unknown: choose {MEAN_SHIFT} or {LINEAR_TRANSPORT}."
            )
        if self.causal and not self.moments:
            raise UserError("`causal` needs the classes' means: give `moments=True`, too.")
        require_at_least(1, max_tokens=self.max_tokens, batch_tokens=self.batch_tokens)

    def at_once(self, device: torch.device) -> int:
        """How many tokens a model on that device processes at a time."""
        return self.batch_tokens or for_device(BATCH_TOKENS, device)


@dataclass(frozen=True)
class Sentences:
    """The sentences of a sweep.

    Args:
        labels: bool [sentences], in the concept's order, as the strata are.
        strata: int64 [sentences], or None.
        batches: All of them, each sentence in one.
    """

    labels: NDArray[np.bool_]
    strata: NDArray[np.int64] | None
    batches: Sequence[Batch]

    @property
    def order(self) -> NDArray[np.int64]:
        """The sentence of each row of the responses, which are in the batches' order."""
        return np.array([index for batch in self.batches for index in batch.indices])


class Sweep:
    """Runs every batch, stage by stage, and computes the statistics of each stage's sites.

    Args:
        opened: The model.
        sentences: The sentences.
        settings: Pooling, and which statistics are wanted.
        states: Stores hidden states between stages.
        snapshots: Stores progress.
        ranks: The processes that share the work.
    """

    def __init__(
        self,
        opened: OpenModel,
        sentences: Sentences,
        settings: SweepSettings,
        *,
        states: States,
        snapshots: Snapshots,
        ranks: Ranks,
    ) -> None:
        self._opened, self._sentences, self._settings = opened, sentences, settings
        self._snapshots, self._ranks = snapshots, ranks
        self._mine = ranks.deal(sentences.batches)
        self._way = _choose_pass(opened, self._mine, len(sentences.labels), states)
        self._capture = Capture(settings.pooling)
        # A batch fills consecutive rows.
        self._starts = np.cumsum([0, *(len(batch.indices) for batch in self._mine)])
        self._rows = ranks.rows([len(batch.indices) for batch in sentences.batches])

    def run(self, restored: Progress) -> Tensors:
        """The statistics of all sites, continuing an interrupted sweep."""
        for index, state in enumerate(restored.hidden):
            passed = index < restored.batch  # it is the next stage's input already
            stage_of = restored.stage + 1 if passed else restored.stage
            self._way.states.write(str(stage_of), index, state.to(self._opened.device))
        statistics = dict(restored.statistics)
        stages = len(self._way.stages)
        per_stage = sum(batch.tokens for batch in self._mine)
        done = restored.stage * per_stage
        done += sum(batch.tokens for batch in self._mine[: restored.batch])
        with show.track(_label(self._way), stages * per_stage, "tokens·layers", done) as advance:
            for stage in range(restored.stage, stages):
                resumed = restored if stage == restored.stage and restored.responses else None
                responses = self._responses(stage, statistics, advance, resumed)
                for site in list(responses):
                    # Each site's responses are released once its statistics are known.
                    statistics[site.path] = self._statistics(site, responses.pop(site))
                if isinstance(self._way.states, InFiles):
                    # The snapshot on disk may need them, so it is replaced first.
                    needed = (str(stage + 1),) if stage + 1 < stages else ()
                    self._save(stage + 1, 0, statistics, needed=needed)
                    self._way.states.keep(*needed)
        self._way.states.keep()
        return statistics

    def _responses(
        self,
        stage: int,
        statistics: Tensors,
        advance: Callable[[int], None],
        resumed: Progress | None,
    ) -> dict[Site, torch.Tensor]:
        """The responses of a stage's sites to this rank's sentences, float32 [rows, neurons]."""
        buffers = _buffers(self._way.stages[stage], int(self._starts[-1]), self._opened)
        if resumed is not None:
            for site, buffer in buffers.items():
                buffer.copy_(resumed.responses[site.path])
        first = 0 if resumed is None else resumed.batch
        with self._capture.hooked(self._opened.model, buffers):
            for index in range(first, self._ranks.rounds(len(self._sentences.batches))):
                if index < len(self._mine):  # the last round may not have a batch for every rank
                    batch = self._mine[index]
                    self._capture.rows(int(self._starts[index]), batch)
                    self._way.run(stage, index)
                    self._capture.check()
                    advance(batch.tokens)
                if self._ranks.all(self._snapshots.due()):
                    so_far = {site.path: buffer for site, buffer in buffers.items()}
                    self._save(stage, index + 1, statistics, so_far)
        return buffers

    def _statistics(self, site: Site, responses: torch.Tensor) -> dict[Statistic, torch.Tensor]:
        """The statistics of a site's neurons, from the responses of all ranks."""
        mine = self._ranks.exchange(responses, self._rows)
        _report_non_finite(site, mine)
        labels, strata = self._sentences.labels, self._sentences.strata
        order = self._sentences.order
        if site.experts:
            widths = _widths(site, self._ranks.share(site.neurons))
            found = _of_experts(mine, widths, labels, strata, order, self._settings)
        else:
            found = statistics_of(mine, labels, strata, order, self._settings)
        joined = self._ranks.join(found)
        _report_not_reached(site, joined[Statistic.AUROC])
        return joined

    def _save(
        self,
        stage: int,
        batch: int,
        statistics: Tensors,
        responses: dict[str, torch.Tensor] | None = None,
        needed: tuple[str, ...] | None = None,
    ) -> None:
        states = self._way.states
        self._snapshots.save(
            Progress(
                stage,
                batch,
                states.secure(),
                responses or {},
                statistics=statistics,
                files=states.sums(),
                needed=needed,
            )
        )


def _choose_pass(
    opened: OpenModel, batches: Sequence[Batch], sentences: int, states: States
) -> Pass:
    reason = why_not_alone(opened, batches)
    if not reason:
        return LayerByLayer(opened, batches, states)
    whose = type(opened.model).__name__
    if opened.streamed is not None:
        raise UserError(
            f"{whose}: its layers share state and cannot be run one by one ({reason}), so it "
            "cannot be streamed: use a machine whose memory holds it, with `stream=False`."
        )
    show.note(
        f"{whose}: its layers cannot be run one by one ({reason}), so the whole forward is used."
    )
    return WholeForward(opened, batches, sentences)


def _label(way: Pass) -> str:
    return "find, layer by layer" if isinstance(way, LayerByLayer) else "find"


def _buffers(sites: Sequence[Site], sentences: int, opened: OpenModel) -> dict[Site, torch.Tensor]:
    """Buffers for responses, in float32 whatever the model's dtype, to avoid false ties."""
    return {
        site: torch.empty(
            sentences, site.neurons, dtype=torch.float32, device=opened.device_of(site.path)
        )
        for site in sites
    }


def statistics_of(
    responses: torch.Tensor,
    labels: NDArray[np.bool_],
    strata: NDArray[np.int64] | None,
    order: NDArray[np.int64],
    settings: SweepSettings,
) -> dict[Statistic, torch.Tensor]:
    """The statistics of one site's neurons.

    Args:
        responses: float32 [sentences, neurons], in the batches' order, on the model's device.
        labels: bool [sentences], in the concept's order, as the strata are.
        strata: int64 [sentences], or None.
        order: The concept's sentence of each row.
        settings: Which statistics are wanted.
    """
    ranked = labels[order]
    found: dict[Statistic, Values] = {Statistic.AUROC: auroc(responses, ranked).astype(np.float32)}
    if strata is not None:
        within = stratified_auroc(responses, ranked, strata[order])
        found[Statistic.STRATIFIED_AUROC] = within.astype(np.float32)
    if settings.moments:
        found |= moments(responses, ranked)
    best = strongest(responses)
    sentences = np.where(best >= 0, order[best], -1).astype(np.int32)
    found |= {name: sentences[rank].copy() for rank, name in enumerate(STRONGEST)}
    return {name: torch.from_numpy(values) for name, values in found.items()}


def _widths(site: Site, share: slice) -> list[int]:
    """How many of these neurons belong to each MoE expert in turn."""
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
) -> dict[Statistic, torch.Tensor]:
    """The same for MoE experts, each from the sentences that reached it.

    An expert that fewer than `FEWEST_SENTENCES` of a class reached gets not-a-number, so that its
    neurons are left unchanged.

    Args:
        responses: As for `statistics_of`, `NOT_REACHED` where a sentence did not reach the expert.
        widths: How many neurons belong to each expert.
        labels: As for `statistics_of`, like the remaining arguments.
    """
    parts: list[dict[Statistic, torch.Tensor]] = []
    for block in responses.split(list(widths), dim=1):
        reached = (block[:, 0] != NOT_REACHED).cpu().numpy()
        numbers = _count(labels[order[reached]], block.shape[1])
        if not _are_enough(order[reached], labels, strata):
            # From any two sentences, for the statistics' names and types.
            any_two = np.array([np.argmax(labels), np.argmin(labels)])
            one = None if strata is None else np.zeros_like(strata)
            found = statistics_of(torch.zeros_like(block[:2]), labels, one, any_two, settings)
            parts.append({name: _fill_unknown(of) for name, of in found.items()} | numbers)
            continue
        rows = torch.from_numpy(reached).to(block.device)
        found = statistics_of(block[rows], labels, strata, order[reached], settings)
        parts.append(found | numbers)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _count(labels: NDArray[np.bool_], neurons: int) -> dict[Statistic, torch.Tensor]:
    """How many sentences of each class there are, for each of an expert's neurons."""
    counts = int(labels.sum()), int((~labels).sum())
    return {
        name: torch.full((neurons,), count, dtype=torch.int32)
        for name, count in zip(REACHED, counts, strict=True)
    }


def _are_enough(
    sentences: NDArray[np.int64], labels: NDArray[np.bool_], strata: NDArray[np.int64] | None
) -> bool:
    """Whether these sentences are enough for the statistics of an expert that only they reached."""
    classes = [sentences[labels[sentences] == label] for label in (True, False)]
    if min(map(len, classes)) < FEWEST_SENTENCES:
        return False
    return strata is None or bool(np.intersect1d(*(strata[of_class] for of_class in classes)).size)


def _fill_unknown(values: torch.Tensor) -> torch.Tensor:
    return torch.full_like(values, torch.nan if values.is_floating_point() else -1)


def _report_non_finite(site: Site, responses: torch.Tensor) -> None:
    """Warn of a site whose responses are infinite or not numbers."""
    if not site.experts and bool(torch.stack(responses.aminmax()).isfinite().all()):
        return
    bad = ~responses.isfinite()
    if site.experts:
        bad &= responses != NOT_REACHED
        if not bad.any():
            return
    nan = int(responses.isnan().any(dim=0).sum())
    fate = f"; {nan} of these get no AUROC and are left unchanged" if nan else ""
    neurons = counted(int(bad.any(dim=0).sum()), "neuron")
    responses_are = (f"response of {neurons} is", f"responses of {neurons} are")
    what = counted(int(bad.sum()), *responses_are)
    show.note(f"warning: {site.path}: {what} not finite{fate}.")


def _report_not_reached(site: Site, aurocs: torch.Tensor) -> None:
    """Warn of MoE experts that too few sentences reached."""
    if not site.experts:
        return
    lacking = int(aurocs.view(site.experts, -1).isnan().all(dim=1).sum())
    if lacking:
        show.note(
            f"warning: {site.path}: {lacking} of {site.experts} experts were reached by fewer than "
            f"{FEWEST_SENTENCES} sentences of a class; their neurons are left unchanged."
        )
