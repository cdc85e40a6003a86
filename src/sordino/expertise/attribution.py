"""What each neuron does for the likelihood of a text, and what changing it costs.

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
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from sordino import progress as show
from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.expertise.passes import LayerByLayer
from sordino.expertise.pooling import FEWEST_SENTENCES
from sordino.expertise.ranks import Ranks
from sordino.expertise.snapshot import Progress, Snapshots
from sordino.expertise.states import InFiles, InMemory, States
from sordino.models.experts import Hook, Routed, experts_hooked
from sordino.models.open import OpenModel
from sordino.models.precision import where_float64
from sordino.models.sites import Site
from sordino.models.tokenise import Batch, encode_for, equal_length_batches

POSITIVE, NEGATIVE, COST = "attribution_positive", "attribution_negative", "cost"
VARIANCE = "attribution_variance"
OBSERVED, DRAWN = "observed", "drawn"

# Logits of one batch, tokens × vocabulary: at most 256 MiB in float32.
_MAX_LOGITS = 2**26


@dataclass(frozen=True)
class AttributionSettings:
    """How attribution and cost are measured.

    Args:
        per_class: How many sentences of each class at most, drawn by seed.
        seed: Of the draw of sentences and of the tokens that stand for the model's own.
    """

    per_class: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_class < 20:
            raise UserError(
                f"--attribution-per-class {self.per_class} is too few: give at least 20."
            )


def attribute(
    opened: OpenModel,
    work: Sequence[tuple[str, Batch]],
    seed: int,
    *,
    folder: Path,
    snapshots: Snapshots,
    restored: Progress,
    ranks: Ranks,
) -> dict[str, torch.Tensor]:
    """Attribution to both classes and the cost on the negative one, by "site.statistic".

    Args:
        opened: The model.
        work: See `attributed`.
        seed: Of the tokens that stand for the model's own.
        folder: Where hidden states wait if the model is streamed.
        snapshots: Where the sums so far are kept.
        restored: Where an interrupted call stood.
        ranks: The processes that share the work.

    Returns:
        "attribution_positive" and "attribution_negative": nats a token, the mean of a over the
        class's tokens; "attribution_variance": nats² a token², the sampling variance of their
        difference, by the spread of a over texts; "cost": nats a token, F on the negative
        sentences. float32 [neurons]; not-a-number for neurons of MoE experts that fewer than
        `FEWEST_SENTENCES` of either class's texts reached.
    """
    kind = Whole if opened.streamed is None else ThereAndBack
    if restored.phase != kind.phase:
        restored = Progress(statistics=restored.statistics)
    sums = restored.responses or _zeros(opened.sites)
    # Each batch has its own draw of tokens, whoever does it.
    seeds = range(seed, seed + len(work))
    with kind.gradients(opened):
        way = kind(opened, ranks.deal(work), ranks.deal(seeds), folder)
        _run(way, work, sums, snapshots, restored, ranks)
    predicted = {
        name: sum(batch.tokens - len(batch.indices) for its, batch in work if its == name)
        for name in (POSITIVE, NEGATIVE)
    }
    found: dict[str, torch.Tensor] = {}
    for site in opened.sites:

        def mean(name: str, tokens: int, path: str = site.path) -> torch.Tensor:
            return sums[f"{path}.{name}"] / tokens

        positive, negative = predicted[POSITIVE], predicted[NEGATIVE]
        # Beside their spread the means over texts are so small that they need not be taken away.
        variance = mean(_squares(POSITIVE), positive**2) + mean(_squares(NEGATIVE), negative**2)
        of_site = {
            POSITIVE: mean(POSITIVE, positive).float(),
            NEGATIVE: mean(NEGATIVE, negative).float(),
            VARIANCE: variance.float(),
            COST: mean(COST, negative).float(),
        }
        if site.experts:
            unknown = _not_reached(site, sums)
            of_site = {name: of.masked_fill(unknown, torch.nan) for name, of in of_site.items()}
        found |= {f"{site.path}.{name}": of for name, of in of_site.items()}
    return found


def _zeros(sites: Sequence[Site]) -> dict[str, torch.Tensor]:
    """The sums of nothing, by "site.name", float64 [neurons]; of texts reached, [experts]."""
    names = (POSITIVE, NEGATIVE, COST, _squares(POSITIVE), _squares(NEGATIVE))
    sizes = {f"{site.path}.{name}": site.neurons for site in sites for name in names}
    reached = _reached(POSITIVE), _reached(NEGATIVE)
    sizes |= {f"{site.path}.{n}": site.experts for site in sites if site.experts for n in reached}
    return {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}


def _not_reached(site: Site, sums: dict[str, torch.Tensor]) -> torch.Tensor:
    """Whether too few texts of either class reached a neuron's expert, bool [neurons]."""
    counts = [sums[f"{site.path}.{_reached(name)}"] for name in (POSITIVE, NEGATIVE)]
    few = torch.minimum(*counts) < FEWEST_SENTENCES
    if few.any():
        show.note(
            f"warning: {site.path}: {int(few.sum())} of {site.experts} experts were reached by "
            f"fewer than {FEWEST_SENTENCES} of a class's texts that attribution took; their "
            "neurons stay as they are."
        )
    return few.repeat_interleave(site.neurons // site.experts)


def attributed(
    opened: OpenModel,
    concept: Concept,
    settings: AttributionSettings,
    max_tokens: int,
    batch_tokens: int,
) -> list[tuple[str, Batch]]:
    """The batches that attribution takes, each with the name of its statistic.

    Args:
        opened: The model.
        concept: The labelled sentences; the negative ones stand for clean text.
        settings: How many sentences, and the seed of their draw.
        max_tokens: Sentences are cut at so many tokens.
        batch_tokens: How many tokens go through the model at a time.
    """
    drawn = concept.sampled(max_per_class=settings.per_class, seed=settings.seed)
    return [
        (name, batch)
        for name, texts in ((POSITIVE, drawn.positive), (NEGATIVE, drawn.negative))
        for batch in _batches(opened, texts, max_tokens, batch_tokens)
    ]


def _run(
    way: "Way",
    work: Sequence[tuple[str, Batch]],
    sums: dict[str, torch.Tensor],
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
            Progress(stage, batch, hidden, sums, restored.statistics, way.phase, files, needed)
        )

    tokens = [batch.tokens for _, batch in ranks.deal(work)]
    done = restored.stage * sum(tokens) + sum(tokens[: restored.batch])
    with show.track("attribution", way.stages * sum(tokens), way.unit, done) as advance:
        for stage in range(restored.stage, way.stages):
            begun = restored.batch if stage == restored.stage else 0
            for index in range(begun, ranks.rounds(len(work))):
                found: dict[str, torch.Tensor] = {}
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

    def run(self, stage: int, batch: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Bring a batch through a stage; gives float64 [neurons] to add to "site.statistic"."""
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
        work: Sequence[tuple[str, Batch]],
        seeds: Sequence[int],
        folder: Path,
    ) -> None:
        del folder  # nothing waits
        self._opened, self._work, self._seeds = opened, work, seeds
        self.states: States = InMemory()

    @staticmethod
    @contextmanager
    def gradients(opened: OpenModel) -> Iterator[None]:
        """Gradients of activations alone: weights need none, the embeddings start the graph."""
        parameters = [p for p in opened.model.parameters() if p.requires_grad]
        opened.model.requires_grad_(False)
        embeddings = opened.model.get_input_embeddings()
        handle = embeddings.register_forward_hook(lambda _m, _i, output: output.requires_grad_())
        try:
            with torch.enable_grad():
                yield
        finally:
            handle.remove()
            for parameter in parameters:
                parameter.requires_grad_()

    def run(self, stage: int, batch: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Everything there is to know of one batch."""
        del stage
        name, texts = self._work[batch]
        with _outputs(self._opened, self._opened.sites) as outputs:
            ids = texts.input_ids.to(self._opened.device)
            logits = self._opened.model(input_ids=ids, use_cache=False).logits
        likelihoods = _likelihoods(logits, texts, name, self._seeds[batch])
        del logits
        for vector, likelihood in likelihoods.items():
            last = vector == list(likelihoods)[-1]
            gradients = torch.autograd.grad(
                likelihood, [watched.outputs for watched in outputs], retain_graph=not last
            )
            yield from _sums(outputs, gradients, texts, COST if vector == DRAWN else name)

    def needed(self, stage: int) -> Sequence[str]:
        """Nothing waits."""
        del stage
        return ()


class ThereAndBack:
    """Layer by layer there, keeping what goes into each, through the head, and layer by layer back.

    One layer is in memory at a time. On the way back each layer is run again, from its kept input,
    with a graph, through which the gradient of its output goes on to its input.
    """

    phase = "attribution, layer by layer"
    unit = "tokens·layers"

    def __init__(
        self,
        opened: OpenModel,
        work: Sequence[tuple[str, Batch]],
        seeds: Sequence[int],
        folder: Path,
    ) -> None:
        self._opened, self._work, self._seeds = opened, work, seeds
        batches = [batch for _, batch in work]
        tokens = [batch.tokens for batch in batches]
        self.states: States = InFiles(folder, tokens, opened.device)
        self._layers = LayerByLayer(opened, batches, self.states)
        self._count = len(self._layers.stages)
        self.stages = 2 * self._count + 1

    @staticmethod
    def gradients(opened: OpenModel) -> AbstractContextManager[None]:
        """Only parts of it need gradients."""
        del opened
        return torch.no_grad()

    def run(self, stage: int, batch: int) -> Iterator[tuple[str, torch.Tensor]]:
        """One layer there, or the head, or one layer back."""
        if stage < self._count:
            # By the same code as on the way back, which sees what experts put out.
            seen = {site.path: _seen for site in self._opened.sites if site.experts}
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
        """All layers' inputs on the way there; those not gone back through, on the way back."""
        if stage <= self._count:
            return [str(layer) for layer in range(stage + 1)]
        below = 2 * self._count - stage + 1
        return [*map(str, range(below)), f"{OBSERVED}-{below}", f"{DRAWN}-{below}"]

    def _turn(self, batch: int) -> None:
        """Keep the gradients of the likelihoods by the last layer's output."""
        name, texts = self._work[batch]
        hidden = self.states.read(str(self._count), batch).requires_grad_()
        likelihoods = _likelihoods(
            self._layers.logits(batch, hidden), texts, name, self._seeds[batch]
        )
        for vector, likelihood in likelihoods.items():
            [gradient] = torch.autograd.grad(likelihood, [hidden], retain_graph=True)
            self.states.write(f"{vector}-{self._count}", batch, gradient)

    def _back(self, layer: int, batch: int) -> Iterator[tuple[str, torch.Tensor]]:
        name, texts = self._work[batch]
        hidden = self.states.read(str(layer), batch).requires_grad_()
        with _outputs(self._opened, self._layers.stages[layer]) as outputs:
            # Some layers add to their input in place.
            output = self._layers.layer(layer, batch, hidden.clone(), then=layer - 1)
        vectors = _vectors(name)
        for vector in vectors:
            above = self.states.read(f"{vector}-{layer + 1}", batch)
            below, *gradients = torch.autograd.grad(
                output,
                [hidden, *(watched.outputs for watched in outputs)],
                above,
                retain_graph=vector != vectors[-1],
            )
            self.states.write(f"{vector}-{layer}", batch, below)
            yield from _sums(outputs, gradients, texts, COST if vector == DRAWN else name)


def _batches(
    opened: OpenModel, texts: Sequence[str], max_tokens: int, batch_tokens: int
) -> list[Batch]:
    """Batches of the texts with something to predict, small enough for all their logits."""
    vocabulary = opened.model.config.get_text_config(decoder=True).vocab_size
    encoded = [ids for ids in encode_for(opened, texts, max_tokens) if len(ids) > 1]
    if not encoded:
        raise UserError("No sentence has a second token to predict: attribution needs longer ones.")
    return equal_length_batches(encoded, min(batch_tokens, max(1, _MAX_LOGITS // vocabulary)))


@dataclass(frozen=True)
class _Watched:
    """What a site put out, or one of its experts.

    Args:
        site: The site.
        outputs: [..., neurons]; of an expert, [tokens that came to it, neurons of one expert].
        tokens: Of an expert, int64 [tokens that came to it], which of the batch's they are.
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

    handles = [
        opened.model.get_submodule(site.path).register_forward_hook(keep(site))
        for site in sites
        if not site.experts
    ]
    hooks = {site.path: keep_routed(site) for site in sites if site.experts}
    try:
        with experts_hooked(opened.model, hooks):
            yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _seen(_routed: Routed) -> None:
    """A hook that has nothing to do."""


def _vectors(statistic: str) -> tuple[str, ...]:
    """Which likelihoods have to be differentiated for a class."""
    return (OBSERVED, DRAWN) if statistic == NEGATIVE else (OBSERVED,)


def _likelihoods(
    logits: torch.Tensor, batch: Batch, statistic: str, seed: int
) -> dict[str, torch.Tensor]:
    """The log-likelihood of the tokens and, on clean text, of tokens that the model draws."""
    log_p = logits[:, :-1].float().log_softmax(dim=-1)
    targets = {OBSERVED: batch.input_ids[:, 1:].to(log_p.device)}
    if DRAWN in _vectors(statistic):
        targets[DRAWN] = _drawn(log_p, seed)
    return {
        vector: log_p.gather(-1, tokens.unsqueeze(-1)).sum() for vector, tokens in targets.items()
    }


def _sums(
    outputs: Sequence[_Watched],
    gradients: Sequence[torch.Tensor],
    batch: Batch,
    statistic: str,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Σ a over a batch's texts and Σ a², or this alone for the cost; by "site.statistic".

    Of sites of experts also how many of the texts reached each.
    """
    found: dict[str, torch.Tensor] = {}

    def put(name: str, size: int, first: int, values: torch.Tensor) -> None:
        whole = found.setdefault(name, values.new_zeros(size, dtype=torch.float64))
        whole[first : first + len(values)] = values

    for watched, gradient in zip(outputs, gradients, strict=True):
        site, width = watched.site, gradient.shape[-1]
        products = gradient.float() * watched.outputs.detach().float()
        if watched.tokens is None:
            # Some layers flatten sentences and tokens before their feed-forward part.
            a = products.reshape(len(batch.indices), -1, width).sum(dim=1)
        else:
            each = torch.arange(len(batch.indices), device=products.device)
            belongs = watched.tokens // batch.input_ids.shape[1] == each[:, None]
            a = belongs.float() @ products
            reached = belongs.any(dim=1).sum(dim=0, keepdim=True)
            if statistic != COST:
                name = f"{site.path}.{_reached(statistic)}"
                put(name, site.experts, watched.expert, where_float64(reached))
        a = where_float64(a)
        squares, first = a.square().sum(dim=0, dtype=torch.float64), watched.expert * width
        if statistic == COST:
            put(f"{site.path}.{COST}", site.neurons, first, squares)
        else:
            total = a.sum(dim=0, dtype=torch.float64)
            put(f"{site.path}.{statistic}", site.neurons, first, total)
            put(f"{site.path}.{_squares(statistic)}", site.neurons, first, squares)
    yield from found.items()


def _squares(statistic: str) -> str:
    """The name of the sum of a statistic's squares."""
    return f"{statistic}_squares"


def _reached(statistic: str) -> str:
    """The name of the number of texts, of those of a statistic, that reached each expert."""
    return f"{statistic}_reached"


def _drawn(log_p: torch.Tensor, seed: int) -> torch.Tensor:
    """A next token for each position, drawn from the model's own distribution."""
    generator = torch.Generator(log_p.device).manual_seed(seed)
    flat = log_p.detach().exp().flatten(0, 1)
    return torch.multinomial(flat, 1, generator=generator).view(log_p.shape[:2])
