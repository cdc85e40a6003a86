"""Each neuron's contribution to the likelihood of a text, and the cost of changing it.

Multiply a neuron's output z by a factor 1 − d. To first order the log-likelihood of a text changes
by −d·a with

    a = Σ_t g_t · z_t,    g_t = ∂ log p(text) / ∂ z_t

(attribution; the sum over the text's tokens; of a MoE expert's neuron, over those that were routed
to it). To second order the divergence from the original
model is ½·d²·F per token with F the diagonal of the Fisher information of the factor,

    F = E[(Σ_t g_t · z_t)²] / tokens

where g is now the gradient of the log-likelihood of tokens that the model itself drew at each
position of a text: their scores have mean zero and are independent given the text, so that the
square of the sum is an unbiased estimate of the sum of the squares (Amari, 1998, "Natural gradient
works efficiently in learning"; Nanda, 2023, "Attribution patching"; Foster et al., 2024, "Selective
synaptic dampening", arXiv:2308.07707, for the diagonal's use in an edit).

Of continuations x that the model itself wrote after prompts, and a judge scored, a is that of
log p(x | prompt), and what counts is

    b = E[(judge(x) − the prompt's mean) · a(x)]

the policy gradient with the prompt's mean as its baseline (Williams, 1992, "Simple statistical
gradient-following algorithms for connectionist reinforcement learning"): to first order the judge's
mean score falls by Σ d·b. The weights of `sordino.expertise.own` are the parentheses.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sordino import progress as show
from sordino.concepts.concept import Concept
from sordino.concepts.text_files import one_line
from sordino.errors import UserError
from sordino.expertise.passes import LayerByLayer
from sordino.expertise.pooling import FEWEST_SENTENCES
from sordino.expertise.refusals import RefusalSettings
from sordino.expertise.sentences import encode_sentences, encode_texts
from sordino.expertise.snapshot import Progress, Snapshots
from sordino.expertise.states import InFiles, InMemory, States
from sordino.expertise.statistic import (
    UNPROTECTED,
    Part,
    Statistic,
    Sum,
    Sums,
    Tensors,
)
from sordino.files import counted
from sordino.models.chat import Chat
from sordino.models.experts import Hook, Routed, experts_hooked
from sordino.models.generation import MAX_LOGITS, inverse_cdf, keeps_last_logits
from sordino.models.hooks import forward_hooks
from sordino.models.open import OpenModel
from sordino.models.precision import where_float64
from sordino.models.ranks import Ranks
from sordino.models.sites import Site
from sordino.models.tokenise import Batch, equal_length_batches

OBSERVED, DRAWN = "observed", "drawn"

_CLEAN = (Statistic.NEGATIVE, Statistic.PROTECTED, Statistic.REFUSALS)
_KINDS = (Statistic.POSITIVE, *_CLEAN, Statistic.OWN)


@dataclass(frozen=True)
class AttributionSettings:
    """How attribution and cost are measured.

    Args:
        per_class: How many sentences of each class at most, drawn by seed.
        seed: Of the draw of sentences and of the tokens that stand for the model's own.
        protected: Texts whose likelihood must not fall. They are added to the negative sentences.
        refusals: The model's own refusals that must not become less likely, or None. In the cost
            they together weigh as much as the negative sentences, however few they are.

    Raises:
        UserError: There are too few sentences of each class.

    Example:
        >>> settings = sordino.AttributionSettings(per_class=20)
        >>> found = sordino.find_experts("tiny", concept, attribution=settings)
        >>> sorted(found["cost"]) == sorted(found.sites)
        True
    """

    per_class: int = 1000
    seed: int = 0
    protected: tuple[str, ...] = ()
    refusals: RefusalSettings | None = None

    def __post_init__(self) -> None:
        if self.per_class < 20:
            raise UserError(
                f"`per_class={self.per_class}` is too few for attribution: give at least 20."
            )

    def apart_from(self, measured: Collection[str]) -> "AttributionSettings":
        """The settings without the protected texts, and the requests, that measure the edit.

        Args:
            measured: Texts, each in one line.

        Raises:
            UserError: All protected texts are measured, or too many requests.
        """
        left = tuple(text for text in self.protected if one_line(text) not in measured)
        if self.protected and not left:
            raise UserError(
                "All texts to protect are measured as well: measure others, or give others as "
                "`protect`."
            )
        if left != self.protected:
            gone = len(self.protected) - len(left)
            show.note(f"not protected, because measured: {counted(gone, 'text')}")
        refusals = self.refusals and self.refusals.apart_from(measured)
        return replace(self, protected=left, refusals=refusals)


@dataclass(frozen=True)
class Passage:
    """A batch of texts that attribution takes.

    Args:
        of: Of which statistic: `POSITIVE`, `NEGATIVE`, `PROTECTED`, `REFUSALS` or `OWN`.
        batch: Their tokens.
        starts: The first token of each text whose likelihood counts: 1, or where a continuation
            begins.
        weights: What each text's attribution is multiplied by.
    """

    of: Statistic
    batch: Batch
    starts: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def counted(self) -> int:
        """The number of tokens whose likelihood counts."""
        return sum(self.batch.input_ids.shape[1] - start for start in self.starts)

    @property
    def vectors(self) -> tuple[str, ...]:
        """The likelihoods that are differentiated."""
        return (OBSERVED, DRAWN) if self.of in _CLEAN else (OBSERVED,)


def attribute(
    opened: OpenModel,
    work: Sequence[Passage],
    seed: int,
    *,
    folder: Path,
    snapshots: Snapshots,
    restored: Progress,
    ranks: Ranks,
) -> Tensors:
    """Attribution to both classes, the cost on the negative one, and attribution to own samples.

    Args:
        opened: The model.
        work: See `passages`, and those of `sordino.expertise.own`.
        seed: Of the tokens that stand for the model's own.
        folder: Where hidden states wait if the model is streamed.
        snapshots: Where the sums so far are kept.
        restored: Where an interrupted call stood.
        ranks: The processes that share the work.

    Returns:
        `POSITIVE` and `NEGATIVE`: nats per token, the mean of a over the class's tokens;
        `VARIANCE`: nats² per token², the sampling variance of their difference, by the spread of a
        over texts;
        `COST`: nats per token, F on the negative sentences; with protected texts, which then count
        among the negative ones, or refusals, which count for `COST`, `PROTECTED` and `REFUSALS`,
        the mean of a over their tokens, and what the others would be without; with own
        samples `OWN`: the mean of their weighted a, by how much the judge's mean score falls for d,
        and `OWN_VARIANCE`, its sampling variance. float32 [neurons]; not-a-number for neurons of
        MoE experts that fewer than `FEWEST_SENTENCES` of a kind's texts reached, except
        `PROTECTED` and `REFUSALS`, which are about these texts and no others.
    """
    kind = Whole if opened.streamed is None else ThereAndBack
    if restored.phase != kind.phase:
        restored = Progress(statistics=restored.statistics)
    kinds = [of for of in _KINDS if any(passage.of is of for passage in work)]
    sums = dict(restored.sums) or _zeros(opened, kinds)
    # Each batch has its own draw of tokens, whoever does it.
    seeds = range(seed, seed + len(work))
    with kind.gradients(opened):
        way = kind(opened, ranks.deal(work), ranks.deal(seeds), folder)
        _run(way, work, sums, snapshots, restored, ranks)
    divisors = {of: _divisor(of, [p for p in work if p.of is of]) for of in kinds}
    return {site.path: _statistics(site, sums, divisors) for site in opened.sites}


def _divisor(of: Statistic, passages: Sequence[Passage]) -> int:
    """The divisor of a mean: the tokens of the corpus, or the continuations of own samples."""
    if of is Statistic.OWN:
        return sum(len(passage.batch.indices) for passage in passages)
    return sum(passage.counted for passage in passages)


def _statistics(
    site: Site, sums: Sums, divisors: Mapping[Statistic, int]
) -> dict[Statistic, torch.Tensor]:
    """A site's statistics from the sums, float32 [neurons] each."""
    positive, negative, _, refusals, own = _KINDS
    weights = dict.fromkeys(divisors, 1.0)
    if refusals in divisors:  # however few they are
        weights[refusals] = divisors[negative] / divisors[refusals]

    def mean(part: Part, *kinds: Statistic) -> torch.Tensor:
        # Beside their spread the means over texts are so small that they need not be taken away.
        power = 2 if part is Part.SQUARES else 1
        divisor = sum(weights[of] * divisors[of] for of in kinds) ** power
        weighed = [weights[of] ** power * sums[Sum(site.path, of, part)] for of in kinds]
        return torch.stack(weighed).sum(dim=0) / divisor

    def benefit(*clean: Statistic) -> dict[Statistic, torch.Tensor]:
        """What the benefit depends on, with these for the clean texts."""
        known = _masking(site, sums, (positive,), clean)
        return {
            negative: known(mean(Part.TOTAL, *clean)),
            Statistic.VARIANCE: known(mean(Part.SQUARES, positive) + mean(Part.SQUARES, *clean)),
        }

    def cost(*clean: Statistic) -> torch.Tensor:
        return _masking(site, sums, (positive,), clean)(mean(Part.DRAWN, *clean))

    found: dict[Statistic, torch.Tensor] = {}
    clean = tuple(of for of in _CLEAN if of in divisors)
    texts = tuple(of for of in clean if of is not refusals)
    guarded = tuple(of for of in clean if of is not negative)
    if positive in divisors:
        found[positive] = _masking(site, sums, (positive,), clean)(mean(Part.TOTAL, positive))
        found |= benefit(*texts)
        found[Statistic.COST] = cost(*clean)
        _say_few(site, sums, (positive,), clean)
    if guarded:
        alone = benefit(negative) | {Statistic.COST: cost(negative)}
        found |= {UNPROTECTED[name]: values for name, values in alone.items()}
    if len(guarded) == 2:
        found[Statistic.WITHOUT_REFUSALS_COST] = cost(*texts)
    for of in guarded:  # not masked: what no text reached has no part in these texts' likelihood
        found[of] = mean(Part.TOTAL, of).float()
    if own in divisors:
        known = _masking(site, sums, (own,))
        found[own] = known(mean(Part.TOTAL, own))
        found[Statistic.OWN_VARIANCE] = known(mean(Part.SQUARES, own))
        _say_few(site, sums, (own,))
    return found


def _add_sums(site: Site, sums: Sums, part: Part, kinds: Sequence[Statistic]) -> torch.Tensor:
    """A sum over the texts of several kinds."""
    return torch.stack([sums[Sum(site.path, of, part)] for of in kinds]).sum(dim=0)


def _zeros(opened: OpenModel, kinds: Sequence[Statistic]) -> Sums:
    """Sums of 0, to begin with."""
    found: Sums = {}
    for site in opened.sites:
        for of in kinds:
            sizes = {Part.TOTAL: site.neurons, Part.SQUARES: site.neurons}
            sizes |= {Part.REACHED: site.experts} if site.experts else {}
            for part, size in sizes.items():
                found[Sum(site.path, of, part)] = torch.zeros(size, dtype=torch.float64)
            if of in _CLEAN:
                drawn = Sum(site.path, of, Part.DRAWN)
                found[drawn] = torch.zeros(site.neurons, dtype=torch.float64)
    return found


def _find_few(site: Site, sums: Sums, *together: Sequence[Statistic]) -> torch.Tensor:
    """Which of a site's experts too few texts reached, bool [experts].

    Args:
        site: The site.
        sums: What was added up.
        together: The kinds of texts, each of which has to be enough; those of one tuple count as
            one.
    """
    reached = [_add_sums(site, sums, Part.REACHED, kinds) for kinds in together]
    return torch.stack(reached).amin(dim=0) < FEWEST_SENTENCES


def _masking(
    site: Site, sums: Sums, *together: Sequence[Statistic]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Makes float32 of a statistic, not-a-number for the experts of `_find_few`."""
    if not site.experts:
        return lambda values: values.float()
    unknown = _find_few(site, sums, *together).repeat_interleave(site.neurons // site.experts)
    return lambda values: values.float().masked_fill(unknown, torch.nan)


def _say_few(site: Site, sums: Sums, *together: Sequence[Statistic]) -> None:
    """Say how many experts `_find_few` finds."""
    few = int(_find_few(site, sums, *together).sum()) if site.experts else 0
    if few:
        texts, fate = "of a class's texts", "their neurons stay as they are"
        if Statistic.OWN in together[0]:
            texts, fate = "continuations", "own samples say nothing of their neurons"
        show.note(
            f"warning: {site.path}: {few} of {site.experts} experts were reached by fewer than "
            f"{FEWEST_SENTENCES} {texts} that attribution took; {fate}."
        )


def passages(
    opened: OpenModel,
    concept: Concept,
    settings: AttributionSettings,
    max_tokens: int,
    batch_tokens: int,
    chat: Chat | None = None,
) -> list[Passage]:
    """The sentences that attribution takes, and the protected texts.

    Args:
        opened: The model.
        concept: The labelled sentences; the negative ones stand for clean text.
        settings: How many sentences, and the seed of their draw.
        max_tokens: Sentences are cut at this many tokens.
        batch_tokens: How many tokens go through the model at a time.
        chat: How the sentences stand in the chat template, where only the likelihood of their own
            tokens counts; None for as they are.

    Raises:
        UserError: No sentence of a class has a second token.
    """
    drawn = concept.sampled(max_per_class=settings.per_class, seed=settings.seed)
    placed = encode_sentences(opened, drawn, max_tokens, chat)
    positives = len(drawn.positive)
    classes = {Statistic.POSITIVE: placed[:positives], Statistic.NEGATIVE: placed[positives:]}
    if settings.protected:
        protected = encode_texts(opened, settings.protected, max_tokens, chat)
        classes[Statistic.PROTECTED] = protected
    found = []
    for of, texts in classes.items():
        kept = [text for text in texts if len(text.ids) > 1]
        if not kept:
            raise UserError(
                "No sentence has a second token to predict: attribution needs longer ones."
            )
        encoded, starts = [text.ids for text in kept], [max(text.start, 1) for text in kept]
        found += in_batches(opened, of, encoded, starts, [1] * len(kept), batch_tokens)
    return found


def in_batches(
    opened: OpenModel,
    of: Statistic,
    encoded: Sequence[Sequence[int]],
    starts: Sequence[int],
    weights: Sequence[float],
    batch_tokens: int,
) -> list[Passage]:
    """Texts in batches that are small enough for all their logits.

    Args:
        opened: The model.
        of: See `Passage`.
        encoded: The token ids of each text, two at least.
        starts: See `Passage`, of all texts, as the weights.
        weights: What each text's attribution is multiplied by.
        batch_tokens: How many tokens go through the model at a time.
    """
    most = min(batch_tokens, opened.positions(MAX_LOGITS))
    return [
        Passage(
            of,
            batch,
            tuple(starts[index] for index in batch.indices),
            tuple(weights[index] for index in batch.indices),
        )
        for batch in equal_length_batches(encoded, most)
    ]


def _run(
    way: "Way",
    work: Sequence[Passage],
    sums: Sums,
    snapshots: Snapshots,
    restored: Progress,
    ranks: Ranks,
) -> None:
    """Bring every batch through every stage, and add up in place what that gives.

    Floating point's sums depend on their order: it is that of the batches, whoever has them.
    """

    def save(stage: int, batch: int, needed: tuple[str, ...] | None = None) -> None:
        hidden, files = way.states.secure(), way.states.sums()
        snapshots.save(
            Progress(
                stage,
                batch,
                hidden,
                sums=sums,
                statistics=restored.statistics,
                phase=way.phase,
                files=files,
                needed=needed,
            )
        )

    tokens = [passage.batch.tokens for passage in ranks.deal(work)]
    done = restored.stage * sum(tokens) + sum(tokens[: restored.batch])
    with show.track("attribution", way.stages * sum(tokens), way.unit, done) as advance:
        for stage in range(restored.stage, way.stages):
            begun = restored.batch if stage == restored.stage else 0
            for index in range(begun, ranks.rounds(len(work))):
                found: Sums = {}
                if index < len(tokens):
                    found = {name: more.cpu() for name, more in way.run(stage, index)}
                    advance(tokens[index])
                for given in ranks.each(found):
                    for name, more in given.items():
                        sums[name] += more
                if ranks.all(snapshots.due()):
                    save(stage, index + 1)
            if isinstance(way.states, InFiles):
                needed = tuple(way.needed(stage + 1))
                save(stage + 1, 0, needed)  # first: the last snapshot may need what goes now
                way.states.keep(*needed)


class Way(Protocol):
    """A way to have all sites' outputs and gradients on every batch, in a number of stages."""

    phase: str
    unit: str
    stages: int
    states: States

    @staticmethod
    def gradients(opened: OpenModel) -> AbstractContextManager[None]:
        """Switch gradients on or off inside the block, as this way needs."""
        ...

    def run(self, stage: int, batch: int) -> Iterator[tuple[Sum, torch.Tensor]]:
        """Bring a batch through a stage; gives what is to be added to each sum."""
        ...

    def needed(self, stage: int) -> Sequence[str]:
        """The states that are needed from this stage on."""
        ...


class Whole:
    """Forward and backward through the whole model, batch by batch."""

    phase = "attribution"
    unit = "tokens"
    stages = 1

    def __init__(
        self,
        opened: OpenModel,
        work: Sequence[Passage],
        seeds: Sequence[int],
        folder: Path,
    ) -> None:
        del folder  # no states are kept
        self._opened, self._work, self._seeds = opened, work, seeds
        self.states: States = InMemory()

    @staticmethod
    @contextmanager
    def gradients(opened: OpenModel) -> Iterator[None]:
        """Gradients of activations alone: weights need none, the embeddings start the graph."""
        parameters = [p for p in opened.model.parameters() if p.requires_grad]
        opened.model.requires_grad_(False)
        embeddings = opened.model.get_input_embeddings()
        # A copy, because some models scale it in place.
        starts = (embeddings, lambda _m, _i, output: output.requires_grad_().clone())
        try:
            with forward_hooks([starts]), torch.enable_grad():
                yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_()

    def run(self, stage: int, batch: int) -> Iterator[tuple[Sum, torch.Tensor]]:
        """All sums of one batch."""
        del stage
        passage = self._work[batch]
        vectors = passage.vectors
        found = _differentiate(self._opened, passage, self._seeds[batch], vectors)
        for vector, (outputs, gradients) in zip(vectors, found, strict=True):
            yield from _sums(outputs, gradients, passage, cost=vector == DRAWN)

    def needed(self, stage: int) -> Sequence[str]:
        """None."""
        del stage
        return ()


class ThereAndBack:
    """Layer by layer forward, keeping each layer's input; the head; then layer by layer backward.

    One layer is in memory at a time. On the way back, each layer is run again from its kept input
    with a graph, through which the gradient of its output is passed on to its input.
    """

    phase = "attribution, layer by layer"
    unit = "tokens·layers"

    def __init__(
        self,
        opened: OpenModel,
        work: Sequence[Passage],
        seeds: Sequence[int],
        folder: Path,
    ) -> None:
        self._opened, self._work, self._seeds = opened, work, seeds
        batches = [passage.batch for passage in work]
        tokens = [batch.tokens for batch in batches]
        self.states: States = InFiles(folder, tokens, opened.device)
        self._layers = LayerByLayer(opened, batches, self.states)
        self._count = len(self._layers.stages)
        self.stages = 2 * self._count + 1

    @staticmethod
    def gradients(opened: OpenModel) -> AbstractContextManager[None]:
        """Gradients are off; the stages that need them switch them on."""
        del opened
        return torch.no_grad()

    def run(self, stage: int, batch: int) -> Iterator[tuple[Sum, torch.Tensor]]:
        """One layer forward, the head, or one layer backward."""
        if stage < self._count:
            # By the same code as on the way back, which sees what experts put out.
            seen = {site.path: _see for site in self._opened.sites if site.experts}
            with experts_hooked(self._opened.model, seen):
                self._layers.run(stage, batch)
        elif stage == self._count:
            with torch.enable_grad():
                self._turn(batch)
        else:
            with torch.enable_grad():
                found = list(self._back(2 * self._count - stage, batch))
            yield from found

    def needed(self, stage: int) -> Sequence[str]:
        """Forward, the inputs of the layers so far; backward, those of the layers that are left."""
        if stage <= self._count:
            return [str(layer) for layer in range(stage + 1)]
        below = 2 * self._count - stage + 1
        return [*map(str, range(below)), f"{OBSERVED}-{below}", f"{DRAWN}-{below}"]

    def _turn(self, batch: int) -> None:
        """Keep the gradients of the likelihoods by the last layer's output."""
        hidden = self.states.read(str(self._count), batch).requires_grad_()
        passage = self._work[batch]
        logits = self._layers.logits(batch, hidden, **_needed(self._opened, passage))
        likelihoods = _likelihoods(logits, passage, self._seeds[batch])
        for vector, likelihood in likelihoods.items():
            [gradient] = torch.autograd.grad(likelihood, [hidden], retain_graph=True)
            self.states.write(f"{vector}-{self._count}", batch, gradient)

    def _back(self, layer: int, batch: int) -> Iterator[tuple[Sum, torch.Tensor]]:
        passage = self._work[batch]
        hidden = self.states.read(str(layer), batch).requires_grad_()
        with _outputs(self._opened, self._layers.stages[layer]) as outputs:
            # Some layers add to their input in place.
            output = self._layers.layer(layer, batch, hidden.clone(), then=layer - 1)
        vectors = passage.vectors
        for vector in vectors:
            above = self.states.read(f"{vector}-{layer + 1}", batch)
            below, *gradients = torch.autograd.grad(
                output,
                [hidden, *(watched.outputs for watched in outputs)],
                above,
                retain_graph=vector != vectors[-1],
            )
            self.states.write(f"{vector}-{layer}", batch, below)
            yield from _sums(outputs, gradients, passage, cost=vector == DRAWN)


@dataclass(frozen=True)
class _Watched:
    """The outputs of a site, or of one of its experts.

    Args:
        site: The site.
        outputs: [..., neurons]; of an expert, [tokens routed to it, neurons of one expert].
        tokens: Of an expert, the indices of the tokens routed to it, int64; else None.
        expert: Its index.
    """

    site: Site
    outputs: torch.Tensor
    tokens: torch.Tensor | None = None
    expert: int = 0


@contextmanager
def _outputs(opened: OpenModel, sites: Sequence[Site]) -> Iterator[list[_Watched]]:
    """The outputs of these sites inside the block."""
    outputs: list[_Watched] = []

    def keep(site: Site) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            outputs.append(_Watched(site, output))
            return output.clone()  # some layers add to it in place

        return hook

    def keep_routed(site: Site) -> Hook:
        def hook(routed: Routed) -> torch.Tensor:
            outputs.append(_Watched(site, routed.outputs, routed.tokens, routed.expert))
            return routed.outputs.clone()

        return hook

    linear = [
        (opened.model.get_submodule(site.path), keep(site)) for site in sites if not site.experts
    ]
    of_experts = {site.path: keep_routed(site) for site in sites if site.experts}
    with forward_hooks(linear), experts_hooked(opened.model, of_experts):
        yield outputs


def _differentiate(
    opened: OpenModel, passage: Passage, seed: int, vectors: Sequence[str]
) -> Iterator[tuple[list[_Watched], tuple[torch.Tensor, ...]]]:
    """The outputs of all sites, and the gradients of each likelihood by them.

    Args:
        opened: The model, inside `Whole.gradients`.
        passage: The texts.
        seed: Of the tokens that stand for the model's own.
        vectors: The likelihoods that are differentiated, in this order.
    """
    with _outputs(opened, opened.sites) as outputs:
        ids = passage.batch.input_ids.to(opened.device)
        options = _needed(opened, passage)
        logits = opened.model(input_ids=ids, use_cache=False, **options).logits
    likelihoods = _likelihoods(logits, passage, seed)
    del logits
    for vector in vectors:
        gradients = torch.autograd.grad(
            likelihoods[vector],
            [watched.outputs for watched in outputs],
            retain_graph=vector != vectors[-1],
        )
        yield outputs, gradients


def _see(_routed: Routed) -> None:
    """A hook without effect."""


def _likelihoods(logits: torch.Tensor, passage: Passage, seed: int) -> dict[str, torch.Tensor]:
    """The log-likelihood of the tokens and, on clean text, of tokens that the model draws.

    Args:
        logits: After each of the last tokens, from before the first that counts on, or earlier.
        passage: The texts.
        seed: Of the draw.
    """
    log_p = logits[:, :-1].float().log_softmax(dim=-1)
    left_out = passage.batch.input_ids.shape[1] - logits.shape[1]
    targets = {OBSERVED: passage.batch.input_ids[:, left_out + 1 :].to(log_p.device)}
    if DRAWN in passage.vectors:
        targets[DRAWN] = _draw(log_p, seed)
    starts = [start - left_out for start in passage.starts]
    return {
        vector: log_likelihoods(log_p, tokens, starts).sum() for vector, tokens in targets.items()
    }


def _needed(opened: OpenModel, passage: Passage) -> dict[str, Any]:
    """Options of a forward that leaves out the logits of the prompts, if the model can.

    With a large vocabulary, logits are most of the work, and of a continuation or a reply in a chat
    template those of the prompt predict nothing that counts.
    """
    if not keeps_last_logits(opened.model):
        return {}
    return {"logits_to_keep": passage.batch.input_ids.shape[1] - min(passage.starts) + 1}


def log_likelihoods(
    log_p: torch.Tensor, tokens: torch.Tensor, starts: Sequence[int]
) -> torch.Tensor:
    """The log-likelihood of each text, float32 [texts].

    Args:
        log_p: At each place but the last, float32 [texts, tokens - 1, vocabulary].
        tokens: The next token there, int64 [texts, tokens - 1].
        starts: The first token of each text that counts; the very first never does.
    """
    first = torch.tensor(starts, device=log_p.device)[:, None]
    counts = torch.arange(1, log_p.shape[1] + 1, device=log_p.device) >= first
    return (log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) * counts).sum(dim=1)


def _sums(
    outputs: Sequence[_Watched],
    gradients: Sequence[torch.Tensor],
    passage: Passage,
    *,
    cost: bool,
) -> Iterator[tuple[Sum, torch.Tensor]]:
    """Σ w·a over a passage's texts and Σ (w·a)², or Σ a² alone for the cost.

    Of sites of experts also how many of the texts reached each.
    """
    found: Sums = {}
    batch = passage.batch

    def put(name: Sum, size: int, first: int, values: torch.Tensor) -> None:
        whole = found.setdefault(name, values.new_zeros(size, dtype=torch.float64))
        whole[first : first + len(values)] = values

    for watched, gradient in zip(outputs, gradients, strict=True):
        site, width = watched.site, gradient.shape[-1]
        a = _by_text(watched, gradient, batch)
        if watched.tokens is not None and not cost:
            reached = _belongs(watched, batch).any(dim=1).sum(dim=0, keepdim=True)
            name = Sum(site.path, passage.of, Part.REACHED)
            put(name, site.experts, watched.expert, where_float64(reached))
        a = where_float64(a)
        first = watched.expert * width
        if cost:
            squares = a.square().sum(dim=0, dtype=torch.float64)
            put(Sum(site.path, passage.of, Part.DRAWN), site.neurons, first, squares)
            continue
        a = a * a.new_tensor(passage.weights)[:, None]
        total = a.sum(dim=0, dtype=torch.float64)
        squares = a.square().sum(dim=0, dtype=torch.float64)
        put(Sum(site.path, passage.of, Part.TOTAL), site.neurons, first, total)
        put(Sum(site.path, passage.of, Part.SQUARES), site.neurons, first, squares)
    yield from found.items()


def _by_text(watched: _Watched, gradient: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Σ g·z of each text, float32 [texts, neurons]."""
    products = gradient.float() * watched.outputs.detach().float()
    if watched.tokens is None:
        # Some layers flatten sentences and tokens before their feed-forward part.
        return products.reshape(len(batch.indices), -1, gradient.shape[-1]).sum(dim=1)
    return _belongs(watched, batch).float() @ products


def _belongs(watched: _Watched, batch: Batch) -> torch.Tensor:
    """Which of the tokens routed to an expert belong to each text, bool [texts, tokens]."""
    assert watched.tokens is not None  # it is an expert's
    each = torch.arange(len(batch.indices), device=watched.tokens.device)
    return watched.tokens // batch.input_ids.shape[1] == each[:, None]


def scores_by_text(
    opened: OpenModel, work: Sequence[Passage], seed: int
) -> tuple[NDArray[np.float32], int]:
    """The score of each clean text by each neuron; their mean square is the cost.

    Args:
        opened: The model, in memory as a whole.
        work: As for `attribute`; the negative texts count.
        seed: As there: with the same work and seed, the same tokens are drawn.

    Returns:
        float32 [neurons, texts], the sites' neurons in their order; and how many tokens count.

    Raises:
        UserError: The model is read layer by layer.
    """
    if opened.streamed is not None:
        raise UserError(
            f"Scores by text are kept for all neurons at once, and {opened.ref.name} is read layer "
            "by layer: use a machine whose memory holds it, with `stream=False`."
        )
    sizes = np.cumsum([0, *(site.neurons for site in opened.sites)])
    starts = {site.path: int(start) for site, start in zip(opened.sites, sizes, strict=False)}
    clean = [(n, passage) for n, passage in enumerate(work) if passage.of is Statistic.NEGATIVE]
    counts = [len(passage.batch.indices) for _, passage in clean]
    found = np.zeros((int(sizes[-1]), sum(counts)), np.float32)
    tokens = sum(passage.batch.tokens for _, passage in clean)
    first = 0
    with Whole.gradients(opened), show.track("scores", tokens, "tokens") as advance:
        for (number, passage), count in zip(clean, counts, strict=True):
            [(outputs, gradients)] = _differentiate(opened, passage, seed + number, [DRAWN])
            for watched, gradient in zip(outputs, gradients, strict=True):
                start = starts[watched.site.path] + watched.expert * gradient.shape[-1]
                rows = slice(start, start + gradient.shape[-1])
                scores = _by_text(watched, gradient, passage.batch).T
                found[rows, first : first + count] = scores.cpu().numpy()
            first += count
            advance(passage.batch.tokens)
    return found, sum(passage.counted for _, passage in clean)


def _draw(log_p: torch.Tensor, seed: int) -> torch.Tensor:
    """A next token for each position, drawn from the model's own distribution."""
    flat = log_p.detach().flatten(0, 1)
    draws = torch.from_numpy(np.random.default_rng(seed).random(len(flat)))
    return inverse_cdf(flat, draws).view(log_p.shape[:2])
