"""A LoRA that is trained by direct preference optimisation (DPO) on the model's own samples.

Of two continuations of one prompt the judge prefers one, y⁺, to the other, y⁻. With p the model
that is trained and p₀ the original, each pair's loss is

    −log σ(β·[log p(y⁺)/p₀(y⁺) − log p(y⁻)/p₀(y⁻)])

(Rafailov et al., 2023, arXiv:2305.18290; against toxicity: Lee et al., 2024, arXiv:2401.01967, with
the same β of 0.1). The model learns from the data of our own rule: the same prompts, continuations
and judge. A LoRA of rank 16 on every linear layer of the decoder is trained by Adam; of the passes
over the pairs the one counts after which the loss is least on pairs of held-out prompts, and none
where the loss is never below the original's. Its scale is then set by the divergence, like that of
every other rival.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import logsigmoid
from torch.optim import Optimizer
from transformers import Conv1D

from sordino import progress as show
from sordino.errors import UserError
from sordino.files import new_file
from sordino.interventions.adapter import Adapter
from sordino.models.open import OpenModel
from sordino.models.sites import ATTENTION, find_sites
from sordino.studies.pairs import Pair
from sordino.studies.steered import refuse_experts

_RANK, _ALPHA = 16, 32
_BETA = 0.1
_ORIGINAL = math.log(2)
"""The loss of every pair before anything is learned."""
RATE = 1e-4
_AT_ONCE = 16
"""Pairs of a step."""
_PASSES = 4
_HELD_OUT = 8
"""One of this many prompts is held out."""
# Logits of a forward pass, tokens × vocabulary: at most 128 MiB in float32.
_MAX_LOGITS = 2**25
_NAME = "default"
"""The name that PEFT gives the one adapter."""

_Matrices = tuple[nn.Parameter, nn.Parameter]
"""The adapter's matrices of a linear layer: [rank, inputs] and [outputs, rank]."""


def train(opened: OpenModel, pairs: Sequence[Pair], seed: int, state: Path) -> Adapter:
    """Train a LoRA that prefers what the judge prefers.

    Args:
        opened: The model, in memory; it is as before afterwards. The adapter is in float32.
        pairs: The pairs to learn from.
        seed: Of the first weights, of the prompts that are held out, and of the order.
        state: Where finished passes are kept, so that an interrupted training goes on.

    Raises:
        UserError: The model has MoE experts, or a loss is not a finite number.
    """
    refuse_experts(replace(opened, site_pattern=ATTENTION), "A trained LoRA")
    learned, held_out = _split(pairs, seed)
    with _adapted(opened, seed) as layers:
        weights = [weight for of in layers.values() for weight in of]
        optimizer = torch.optim.Adam(weights, lr=RATE)
        if not state.exists():
            # At first the adapter changes nothing, so the model is still the original.
            first: dict[str, Any] = {"losses": [], "best": _copied(weights)}
            first |= {"learned": _margins(opened, learned), "held_out": _margins(opened, held_out)}
            _save(state, first, weights, optimizer)
        kept = torch.load(state, weights_only=True)
        optimizer.load_state_dict(kept["optimizer"])
        _put(weights, kept["weights"])
        total, done = (_tokens(learned) * n for n in (_PASSES, len(kept["losses"])))
        with show.track("training", total, "tokens", done) as advance:
            for turn in range(len(kept["losses"]), _PASSES):
                order = np.random.default_rng((seed, turn)).permutation(len(learned))
                for start in range(0, len(order), _AT_ONCE):
                    chosen = order[start : start + _AT_ONCE]
                    some = [learned[index] for index in chosen]
                    for losses in _losses(opened, some, kept["learned"][chosen]):
                        _refuse_endless(opened, losses, "the pairs")
                        (losses.sum() / len(some)).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    advance(_tokens(some))
                with torch.inference_mode():
                    losses = torch.cat([*_losses(opened, held_out, kept["held_out"])])
                _refuse_endless(opened, losses, "held-out pairs")
                tried = losses.mean().item()
                show.note(f"pass {turn + 1} of {_PASSES}: a loss of {tried:.4f} on held-out pairs")
                if tried < min([_ORIGINAL, *kept["losses"]]):
                    kept["best"] = _copied(weights)
                kept["losses"].append(tried)
                _save(state, kept, weights, optimizer)
        _put(weights, kept["best"])
        return Adapter(
            "dpo",
            {path: _values(down) for path, (down, _) in layers.items()},
            {path: _values(up) * np.float32(_ALPHA / _RANK) for path, (_, up) in layers.items()},
        )


def _split(pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """The pairs to learn from, and those of held-out prompts."""
    prompts = sorted({pair.prompt for pair in pairs})
    order = np.random.default_rng(seed).permutation(prompts)
    apart = set(order[: max(1, len(prompts) // _HELD_OUT)].tolist())
    split: dict[bool, list[Pair]] = {True: [], False: []}
    for pair in pairs:
        split[pair.prompt in apart].append(pair)
    return split[False], split[True]


@contextmanager
def _adapted(opened: OpenModel, seed: int) -> Iterator[dict[str, _Matrices]]:
    """Inside the block the model has a LoRA that changes nothing yet; its matrices by layer."""
    from peft import LoraConfig, get_peft_model

    model = opened.model
    paths = [site.path for site in find_sites(model, ATTENTION)]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config = LoraConfig(
        r=_RANK, lora_alpha=_ALPHA, target_modules=paths, fan_in_fan_out=_is_conv(model, paths)
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    try:
        layers: dict[str, Any] = {path: model.get_submodule(path) for path in paths}
        found = {p: (of.lora_A[_NAME].weight, of.lora_B[_NAME].weight) for p, of in layers.items()}
        with torch.enable_grad():
            yield found
    finally:
        adapted.unload()
        for parameter in learning:
            parameter.requires_grad_()


def _is_conv(model: nn.Module, paths: Sequence[str]) -> bool:
    """Whether weights are stored transposed, as by GPT-2."""
    return isinstance(model.get_submodule(paths[0]), Conv1D)


def _losses(
    opened: OpenModel, pairs: Sequence[Pair], margins: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The loss of each pair, float32, in batches whose logits fit; each batch has its graph.

    Args:
        opened: The model with the adapter.
        pairs: The pairs.
        margins: What `_margins` gave for the original.
    """
    for chosen in _batches(opened, pairs):
        now = _margin(opened, [pairs[index] for index in chosen])
        yield -logsigmoid(_BETA * (now - margins[chosen].to(now.device)))


@torch.inference_mode()
def _margins(opened: OpenModel, pairs: Sequence[Pair]) -> torch.Tensor:
    """Log p(y⁺) − log p(y⁻) of each pair, float32 [pairs]."""
    found = torch.empty(len(pairs))
    with show.track("reference", _tokens(pairs), "tokens") as advance:
        for chosen in _batches(opened, pairs):
            some = [pairs[index] for index in chosen]
            found[chosen] = _margin(opened, some).cpu()
            advance(_tokens(some))
    return found


def _margin(opened: OpenModel, pairs: Sequence[Pair]) -> torch.Tensor:
    """Log p(y⁺) − log p(y⁻) of pairs that fit into one batch, with a graph if gradients are on."""
    texts = [pair.preferred for pair in pairs] + [pair.rejected for pair in pairs]
    longest = max(len(text.ids) for text in texts)
    # Padding after a text does not change what a causal model computes for it.
    ids = torch.zeros(len(texts), longest, dtype=torch.int64)
    counts = torch.zeros(len(texts), longest, dtype=torch.bool)
    there = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
        there[row, : len(text.ids)] = 1
        counts[row, text.start : len(text.ids)] = True
    ids, there, counts = (values.to(opened.device) for values in (ids, there, counts))
    logits = opened.model(input_ids=ids, attention_mask=there, use_cache=False).logits
    log_p = logits[:, :-1].float().log_softmax(-1)
    of_tokens = log_p.gather(-1, ids[:, 1:, None]).squeeze(-1) * counts[:, 1:]
    preferred, rejected = of_tokens.sum(dim=1).chunk(2)
    return preferred - rejected


def _batches(opened: OpenModel, pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """The pairs' indices in batches: pairs of similar length, as many as their logits allow."""
    most = opened.positions(_MAX_LOGITS)
    order = sorted(range(len(pairs)), key=lambda index: -_longest(pairs[index]))
    while order:
        count = max(1, most // (2 * _longest(pairs[order[0]])))
        yield order[:count]
        order = order[count:]


def _longest(pair: Pair) -> int:
    return max(len(pair.preferred.ids), len(pair.rejected.ids))


def _tokens(pairs: Sequence[Pair]) -> int:
    return sum(len(pair.preferred.ids) + len(pair.rejected.ids) for pair in pairs)


def _values(weight: nn.Parameter) -> NDArray[np.float32]:
    return weight.detach().float().cpu().numpy().copy()


def _refuse_endless(opened: OpenModel, losses: torch.Tensor, where: str) -> None:
    if not losses.isfinite().all():
        raise UserError(
            f"The loss on {where} of the LoRA that is trained on {opened.ref.name} is not a finite "
            'number: give `find_dtype="float32"`, or study other rivals on this model.'
        )


def _copied(weights: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in weights]


def _put(weights: Sequence[nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)


def _save(
    path: Path, kept: dict[str, Any], weights: Sequence[nn.Parameter], optimizer: Optimizer
) -> None:
    now = {"weights": _copied(weights), "optimizer": optimizer.state_dict()}
    with new_file(path, force=True) as stage:
        torch.save(kept | now, stage)
