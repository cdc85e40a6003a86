"""From a neuron's outputs at each token to its response to the sentence."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sordino.errors import UserError
from sordino.models.experts import Hook, Routed, experts_hooked
from sordino.models.hooks import forward_hooks
from sordino.models.sites import Site
from sordino.models.tokenise import Batch

Pooling = Callable[[torch.Tensor], torch.Tensor]

# Each takes outputs [sentences, tokens, neurons] and gives responses [sentences, neurons].
POOLINGS: dict[str, Pooling] = {
    "max": lambda outputs: outputs.amax(dim=1),
    "mean": lambda outputs: outputs.float().mean(dim=1),
    "last": lambda outputs: outputs[:, -1],
}


def pool(outputs: torch.Tensor, starts: Sequence[int], pooling: Pooling) -> torch.Tensor:
    """The responses at the sentences' own tokens alone, [sentences, neurons].

    Args:
        outputs: [sentences, tokens, neurons].
        starts: Where each sentence's own tokens begin; () for all tokens.
        pooling: Of `POOLINGS`.
    """
    if len(set(starts)) <= 1:
        return pooling(outputs[:, starts[0] :] if starts else outputs)
    return torch.cat(
        [pooling(row[start:][None]) for row, start in zip(outputs, starts, strict=True)]
    )


# The same for the outputs of one MoE expert, [tokens routed to it, neurons], sorted by sentence;
# `counts` says how many each sentence has, at least one. Responses are [sentences, neurons].
_EXPERT_POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "max": lambda outputs, counts: torch.segment_reduce(outputs, "max", lengths=counts),
    "mean": lambda outputs, counts: torch.segment_reduce(outputs, "mean", lengths=counts),
    "last": lambda outputs, counts: outputs[counts.cumsum(0) - 1],
}
# The response of an expert's neuron to a sentence without a token routed to the expert.
NOT_REACHED = float("-inf")
# How many sentences of each class have to reach a MoE expert for statistics of its neurons. With so
# many, the AUROC of a neuron that does not recognise the concept has a standard error of 0.075.
FEWEST_SENTENCES = 30


def pooling_named(name: str) -> Pooling:
    """The pooling of that name.

    Raises:
        UserError: There is none.
    """
    if name not in POOLINGS:
        raise UserError(f"`pooling={name}` is unknown: choose {', '.join(POOLINGS)}.")
    return POOLINGS[name]


class Capture:
    """Pools the outputs of sites, batch by batch, into rows of their response buffers.

    `rows` sets the rows of the next batch; after it, `check` makes sure that every site was called
    exactly once on all of its tokens. A MoE expert sees only the tokens routed to it; its response
    to a sentence without any is `NOT_REACHED`.

    Args:
        pooling: The name of a pooling.
    """

    def __init__(self, pooling: str) -> None:
        self._pooling = pooling_named(pooling)
        self._expert_pooling = _EXPERT_POOLINGS[pooling]
        self._buffers: dict[str, torch.Tensor] = {}
        self._of_experts: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._start = self._sentences = self._tokens = 0
        self._starts: tuple[int, ...] = ()

    @contextmanager
    def hooked(self, model: nn.Module, buffers: Mapping[Site, torch.Tensor]) -> Iterator[None]:
        """Capture the outputs of the buffers' sites inside the block.

        Args:
            model: The model that has the sites.
            buffers: The buffer for each site's responses, float32 [sentences, neurons].
        """
        self._buffers = {site.path: buffer for site, buffer in buffers.items()}
        self._of_experts = {
            site.path: site.neurons // site.experts for site in buffers if site.experts
        }
        linear = [
            (model.get_submodule(path), self._hook(path))
            for path in self._buffers
            if path not in self._of_experts
        ]
        of_experts = {path: self._expert_hook(path) for path in self._of_experts}
        with forward_hooks(linear), experts_hooked(model, of_experts):
            yield

    def rows(self, start: int, batch: Batch) -> None:
        """Set the rows of the next batch, from `start` on."""
        self._start, self._starts = start, batch.starts
        sentences, self._tokens = batch.input_ids.shape
        self._sentences = sentences
        self._calls = dict.fromkeys(self._buffers, 0)
        for path in self._of_experts:
            self._buffers[path][start : start + sentences] = NOT_REACHED

    def check(self) -> None:
        """Raise `UserError` if a site did not run exactly once on the batch."""
        for path, calls in self._calls.items():
            if calls != 1 and not (calls and path in self._of_experts):
                raise UserError(
                    f"{path} ran {calls} times on one batch, not once on all of its tokens: leave "
                    "it out with `sites`."
                )

    def _hook(self, path: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._calls[path] += 1
            expected = (self._sentences, self._tokens)
            if output.dim() == 2 and len(output) == self._sentences * self._tokens:
                # Some layers flatten sentences and tokens before their feed-forward block.
                output = output.unflatten(0, expected)
            if output.dim() != 3 or output.shape[:2] != expected:
                raise UserError(
                    f"{path} gave outputs of shape {list(output.shape)} for {expected[0]} "
                    f"sentences of {expected[1]} tokens, and which belong to which token is not "
                    "known: leave it out with `sites`, or this model if all its layers are so."
                )
            rows = self._buffers[path][self._start : self._start + self._sentences]
            rows.copy_(pool(output, self._starts, self._pooling))

        return hook

    def _expert_hook(self, path: str) -> Hook:
        def hook(routed: Routed) -> None:
            self._calls[path] += 1
            if routed.of != self._sentences * self._tokens:
                raise UserError(
                    f"{path} was given {routed.of} tokens of {self._sentences} sentences of "
                    f"{self._tokens} tokens: leave it out with `sites`."
                )
            order = routed.tokens.argsort()
            if self._starts:
                starts = torch.tensor(self._starts, device=order.device)
                places = routed.tokens[order]
                order = order[places % self._tokens >= starts[places // self._tokens]]
            if not len(order):
                return
            sentences, counts = (routed.tokens[order] // self._tokens).unique_consecutive(
                return_counts=True
            )
            # Clamped, so that a response of -inf differs from `NOT_REACHED`; the order stays.
            pooled = self._expert_pooling(routed.outputs[order].float(), counts)
            width = self._of_experts[path]
            columns = slice(routed.expert * width, (routed.expert + 1) * width)
            rows = self._buffers[path][self._start : self._start + self._sentences, columns]
            rows[sentences] = pooled.clamp(min=torch.finfo(pooled.dtype).min)

        return hook
