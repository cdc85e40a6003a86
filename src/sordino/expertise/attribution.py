"""What each neuron does for the likelihood of a text, and what changing it costs.

Multiply a neuron's output z by a factor 1 − d. To first order the log-likelihood of a text changes
by −d·a with

    a = Σ_t g_t · z_t,    g_t = ∂ log p(text) / ∂ z_t

(attribution; the sum over the text's tokens). To second order the divergence from the original
model is ½·d²·F per token with F the diagonal of the Fisher information of the factor,

    F = E[(Σ_t g_t · z_t)²] / tokens

where g is now the gradient of the log-likelihood of tokens that the model itself drew at each
position of a text: their scores have mean zero and are independent given the text, so that the
square of the sum is an unbiased estimate of the sum of the squares (Amari, 1998, "Natural gradient
works efficiently in learning"; Nanda, 2023, "Attribution patching"; Foster et al., 2024, "Selective
synaptic dampening", arXiv:2308.07707, for the diagonal's use in an edit).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sordino import progress as show
from sordino.concepts.concept import Concept
from sordino.errors import UserError
from sordino.expertise.snapshot import Progress, Snapshots
from sordino.models.open import OpenModel
from sordino.models.tokenise import Batch, encode, equal_length_batches

# Logits of one batch, tokens × vocabulary: at most 256 MiB in float32.
_MAX_LOGITS = 2**26


@dataclass(frozen=True)
class AttributionSettings:
    """How attribution and cost are measured.

    Args:
        per_class: How many sentences of each class, drawn by seed.
        seed: Of the draw of sentences and of the tokens that stand for the model's own.
    """

    per_class: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_class < 20:
            raise UserError(
                f"--attribution-per-class {self.per_class} is too few: give at least 20."
            )


def attribute(
    opened: OpenModel,
    concept: Concept,
    settings: AttributionSettings,
    *,
    max_tokens: int,
    batch_tokens: int,
    snapshots: Snapshots,
    restored: Progress,
) -> dict[str, torch.Tensor]:
    """Attribution to both classes and the cost on the negative one, by "site.statistic".

    Args:
        opened: The model.
        concept: The labelled sentences; the negative ones stand for clean text.
        settings: How many sentences, and the seed.
        max_tokens: Sentences are cut at so many tokens.
        batch_tokens: How many tokens go through the model at a time.
        snapshots: Where the sums so far are kept.
        restored: Where an interrupted call stood.

    Returns:
        "attribution_positive" and "attribution_negative": nats a token, the mean of a over the
        class's tokens; "cost": nats a token, F on the negative sentences. float32 [neurons].
    """
    drawn = concept.sampled(max_per_class=settings.per_class, seed=settings.seed)
    classes = {
        "attribution_positive": _batches(opened, drawn.positive, max_tokens, batch_tokens),
        "attribution_negative": _batches(opened, drawn.negative, max_tokens, batch_tokens),
    }
    work = [(name, batch) for name, batches in classes.items() for batch in batches]
    sums = restored.responses or {
        f"{site.path}.{name}": torch.zeros(site.neurons, dtype=torch.float64)
        for site in opened.sites
        for name in (*classes, "cost")
    }
    tokens = [batch.tokens for _, batch in work]
    with (
        show.track("attribution", sum(tokens), "tokens", sum(tokens[: restored.batch])) as advance,
        _gradients(opened),
    ):
        for index in range(restored.batch, len(work)):
            name, batch = work[index]
            log_p, outputs = _forward(opened, batch)
            targets = batch.input_ids[:, 1:].to(opened.device)
            clean = name == "attribution_negative"
            for site, scores in _scores(log_p, targets, outputs, keep=clean).items():
                sums[f"{site}.{name}"] += scores.sum(dim=0, dtype=torch.float64).cpu()
            if clean:
                own = _drawn(log_p, settings.seed + index)
                for site, scores in _scores(log_p, own, outputs, keep=False).items():
                    squares = scores.square().sum(dim=0, dtype=torch.float64)
                    sums[f"{site}.cost"] += squares.cpu()
            del log_p, outputs  # the graph goes before the next batch makes its own
            advance(batch.tokens)
            if snapshots.due():
                snapshots.save(
                    Progress(
                        batch=index + 1,
                        responses=sums,
                        statistics=restored.statistics,
                        attributing=True,
                    )
                )
    predicted = {
        name: sum(batch.tokens - len(batch.indices) for batch in batches)
        for name, batches in classes.items()
    }
    predicted["cost"] = predicted["attribution_negative"]
    return {
        name: (total / predicted[name.rpartition(".")[2]]).float() for name, total in sums.items()
    }


def _batches(
    opened: OpenModel, texts: Sequence[str], max_tokens: int, batch_tokens: int
) -> list[Batch]:
    """Batches of the texts with something to predict, small enough for all their logits."""
    vocabulary = opened.model.config.get_text_config(decoder=True).vocab_size
    encoded = [ids for ids in encode(opened.tokenizer, texts, max_tokens) if len(ids) > 1]
    if not encoded:
        raise UserError("No sentence has a second token to predict: attribution needs longer ones.")
    return equal_length_batches(encoded, min(batch_tokens, max(1, _MAX_LOGITS // vocabulary)))


@contextmanager
def _gradients(opened: OpenModel) -> Iterator[None]:
    """Gradients of activations alone: the weights need none, the embeddings start the graph."""
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


def _forward(opened: OpenModel, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities [texts, tokens − 1, vocabulary] and the sites' outputs, with a graph."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            outputs[path] = output
            return output.clone()  # some layers add to it in place

        return hook

    handles = [
        opened.model.get_submodule(site.path).register_forward_hook(keep(site.path))
        for site in opened.sites
    ]
    try:
        logits = opened.model(input_ids=batch.input_ids.to(opened.device), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits[:, :-1].float().log_softmax(dim=-1), outputs


def _scores(
    log_p: torch.Tensor, targets: torch.Tensor, outputs: dict[str, torch.Tensor], *, keep: bool
) -> dict[str, torch.Tensor]:
    """A = Σ_t g_t · z_t of each text, by site path, float32 [texts, neurons]."""
    likelihood = log_p.gather(-1, targets.unsqueeze(-1)).sum()
    gradients = torch.autograd.grad(likelihood, list(outputs.values()), retain_graph=keep)
    return {
        site: _by_text(gradient.float() * output.detach().float(), len(targets))
        for (site, output), gradient in zip(outputs.items(), gradients, strict=True)
    }


def _by_text(products: torch.Tensor, texts: int) -> torch.Tensor:
    # Some layers flatten sentences and tokens before their feed-forward part.
    return products.reshape(texts, -1, products.shape[-1]).sum(dim=1)


def _drawn(log_p: torch.Tensor, seed: int) -> torch.Tensor:
    """A next token for each position, drawn from the model's own distribution."""
    generator = torch.Generator(log_p.device).manual_seed(seed)
    flat = log_p.detach().exp().flatten(0, 1)
    return torch.multinomial(flat, 1, generator=generator).view(log_p.shape[:2])
