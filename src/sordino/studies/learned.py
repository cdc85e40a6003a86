"""Factors that are learned, beginning at contrast: how much one factor per row can do at most.

Contrast takes the slopes of its two goals at no change, and its answer is one step. Here the goals
themselves, at changes d (factors 1 − d), are lowered further:

- own(d): the judge's mean score of what the edited model p_d would write, estimated from what the
  original p₀ wrote. With the weight w of a continuation x as in `sordino.expertise.own`,

      E[w(x)·min(p_d(x)/p₀(x), 2)]

  which without the bound is exact up to a constant (importance sampling; truncated: Ionides, 2008,
  doi:10.1198/106186008X320456). Its slope at 0 is contrast's benefit by own samples.
- corpus(d): the log-likelihood of the concept's sentences less that of the others, per token. Its
  slope at 0 is contrast's benefit by labelled sentences.

Each counts by the share of what it alone could gain at first, as in contrast. Among all d in [0, 1]
with ½·Σ d²·F at most a budget, which are a convex set, the goals are lowered by the method of Frank
and Wolfe (1956; Jaggi, 2013): where the goals have the slopes −b, the point of the set that lowers
them most to first order is what contrast gives for b, clip(λ·b/F, 0, 1), and each step moves there
by a share of 2/(k + 2). So the geometry is that of the divergence, no step has a rate to tune, none
leaves the set, and step 0 is contrast itself. Slopes are measured on a quarter of the texts at a
time, averaged over the last steps (Mokhtari et al., 2020, "Stochastic conditional gradient
methods"), and shrunk by their sampling variance as contrast's are.

After each pass over the texts the divergence is measured, and changes and budget are scaled to what
is asked for. A fifth of the sentences and of the prompts are held out: learning ends with the first
pass that does not lower the goals there, and the best of all counts, contrast among them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sordino import progress as show
from sordino.expertise.artefact import Expertise
from sordino.expertise.attribution import Passage, Whole, in_batches, log_likelihoods
from sordino.expertise.own import OwnSamples, weights
from sordino.expertise.statistic import Statistic
from sordino.expertise.sweep import BATCH_TOKENS
from sordino.files import new_file
from sordino.interventions.rules.contrast import amounts
from sordino.interventions.shrinkage import shrunk
from sordino.models.hooks import forward_hooks
from sordino.models.open import OpenModel
from sordino.models.tokenise import Placed
from sordino.studies.steered import refuse_experts

Floats = NDArray[np.float64]

PASSES = 4
_PARTS = 4
"""Steps of a pass."""
_HELD_OUT = 5
"""One of this many sentences, or prompts, is held out."""
_MOST = 2.0
"""A continuation counts at most this many times its weight."""
_OWN, _CORPUS = "own", "corpus"
_KINDS = (Statistic.POSITIVE, Statistic.NEGATIVE, Statistic.OWN)

Chosen = dict[Statistic, NDArray[np.int64]]
"""The numbers of the chosen texts of each kind."""


@dataclass(frozen=True)
class Texts:
    """Texts of one kind.

    Args:
        placed: Their tokens, and where those begin whose likelihood counts.
        weights: What each counts, float64 [texts].
        groups: int64 [texts]; those of one group are learned from or held out together.
        before: The original's log-likelihood of each, float64 [texts]; zeros until it is known.
    """

    placed: Sequence[Placed]
    weights: Floats
    groups: NDArray[np.int64]
    before: Floats

    @classmethod
    def of_sentences(cls, placed: Sequence[Placed]) -> "Texts":
        """Labelled sentences of one class; of those that are too short, nothing counts."""
        kept = [Placed(text.ids, max(text.start, 1)) for text in placed if len(text.ids) > 1]
        count = len(kept)
        return cls(kept, np.ones(count), np.arange(count), np.zeros(count))

    @classmethod
    def of_samples(cls, samples: OwnSamples) -> "Texts":
        """Own samples; those of one prompt are a group."""
        prompts, count = samples.scores.shape
        of_prompts = np.repeat(np.arange(prompts), count)
        kept = weights(samples.scores).ravel()
        return cls(samples.texts, kept, of_prompts, np.zeros(kept.size))


@dataclass(frozen=True)
class Goals:
    """The goals that learning lowers, and the texts that they are measured on.

    Args:
        opened: The model, in memory and in float32, with the sites that change.
        texts: By kind: `POSITIVE`, `NEGATIVE` and `OWN`.
        expertise: Of the same sites and texts, with attribution to them.
        budget: Nats per token, by the diagonal estimate.
    """

    opened: OpenModel
    texts: dict[Statistic, Texts]
    expertise: Expertise
    budget: float

    def flat(self, statistic: Statistic) -> Floats:
        """A statistic of all neurons, float64 [neurons]; 0 where it is unknown."""
        joined = np.concatenate([*self.expertise[statistic].values()]).astype(np.float64)
        return np.where(np.isnan(joined), 0.0, joined)

    def after(self, before: Floats) -> "Goals":
        """The same with the original's log-likelihood of each own sample."""
        own = replace(self.texts[Statistic.OWN], before=before)
        return replace(self, texts={**self.texts, Statistic.OWN: own})

    def gains(self) -> dict[str, float]:
        """The gain that each goal alone would have within the budget, as in contrast."""
        cost = self.flat(Statistic.COST)
        measured = {
            _OWN: self.flat(Statistic.OWN),
            _CORPUS: self.flat(Statistic.POSITIVE) - self.flat(Statistic.NEGATIVE),
        }
        return {
            goal: float(amounts(of, cost, self.budget) @ of) or 1.0 for goal, of in measured.items()
        }

    def measure(
        self, changes: Floats, chosen: Chosen, *, slopes: bool
    ) -> tuple[dict[str, float], dict[str, Floats]]:
        """The goals at these changes, and by how much each falls for a further change.

        Args:
            changes: float64 [neurons].
            chosen: Which of each kind's texts.
            slopes: Whether slopes are wanted; otherwise there are none.

        Returns:
            By goal: its value, and its benefits, float64 [neurons].
        """
        values: dict[Statistic, float] = {}
        falls: dict[Statistic, Floats] = {}
        with _change_outputs(self.opened, changes) as turned:
            for kind in _KINDS:
                values[kind], falls[kind] = self._of_kind(kind, chosen[kind], turned, slopes)
        positive, negative, own = _KINDS
        return (
            {_OWN: values[own], _CORPUS: values[positive] - values[negative]},
            {_OWN: falls[own], _CORPUS: falls[positive] - falls[negative]},
        )

    def _of_kind(
        self,
        kind: Statistic,
        chosen: NDArray[np.int64],
        turned: Sequence[torch.Tensor],
        slopes: bool,
    ) -> tuple[float, Floats]:
        texts = self.texts[kind]
        value, fall = 0.0, np.zeros(sum(of.numel() for of in turned))
        work = self.work(kind, chosen)
        divisor = len(chosen) if kind is Statistic.OWN else sum(one.counted for one in work)
        for passage in work:
            with torch.set_grad_enabled(slopes):
                of_texts = self.log_likelihoods(passage)
                if kind is Statistic.OWN:
                    which = chosen[list(passage.batch.indices)]
                    before = torch.from_numpy(texts.before[which]).to(of_texts)
                    ratios = (of_texts - before).exp().clamp(max=_MOST)
                    total = (ratios * torch.tensor(passage.weights).to(of_texts)).sum()
                else:
                    total = of_texts.sum()
            value += total.item() / divisor
            if slopes:
                gradients = torch.autograd.grad(total, turned)
                fall -= torch.cat([of.cpu() for of in gradients]).double().numpy() / divisor
        return value, fall

    def work(self, kind: Statistic, chosen: NDArray[np.int64]) -> list[Passage]:
        """The chosen texts of a kind, in batches."""
        texts = self.texts[kind]
        placed = [texts.placed[index] for index in chosen]
        return in_batches(
            self.opened,
            kind,
            [text.ids for text in placed],
            [text.start for text in placed],
            texts.weights[chosen].tolist(),
            BATCH_TOKENS,
        )

    def log_likelihoods(self, passage: Passage) -> torch.Tensor:
        """The log-likelihood of each text of a batch, float32 [texts]."""
        ids = passage.batch.input_ids.to(self.opened.device)
        logits = self.opened.model(input_ids=ids, use_cache=False).logits
        return log_likelihoods(logits[:, :-1].float().log_softmax(-1), ids[:, 1:], passage.starts)


@contextmanager
def _change_outputs(opened: OpenModel, changes: Floats) -> Iterator[list[torch.Tensor]]:
    """Inside the block the sites' outputs are multiplied by 1 − d; the d of each, as leaves."""
    ends = np.cumsum([site.neurons for site in opened.sites])[:-1]
    turned, hooks = [], []
    for site, part in zip(opened.sites, np.split(changes, ends), strict=True):
        leaf = torch.tensor(part, dtype=torch.float32, device=opened.device_of(site.path))
        turned.append(leaf.requires_grad_())
        hooks.append((opened.model.get_submodule(site.path), _hook(leaf)))
    with forward_hooks(hooks), Whole.gradients(opened):
        yield turned


def _hook(change: torch.Tensor) -> Any:
    return lambda _module, _inputs, output: output * (1 - change).to(output.dtype)


def learn(
    goals: Goals,
    start: Floats,
    scale: Callable[[Floats], float],
    seed: int,
    state: Path,
) -> Floats:
    """Changes that reach the goals better than those they start from.

    Args:
        goals: What is lowered.
        start: The changes at the start, those of contrast, float64 [neurons].
        scale: By what changes have to be multiplied for the divergence that is asked for, as it is
            measured.
        seed: Of the texts that are held out, and of the order.
        state: Where finished steps are kept, so that an interrupted learning goes on.

    Returns:
        float64 [neurons], in [0, 1].

    Raises:
        UserError: The model has MoE experts.
    """
    refuse_experts(goals.opened, "Learned factors")
    learned, held_out = _split(goals, seed)
    gains = goals.gains()

    def judge(changes: Floats) -> float:
        values, _ = goals.measure(changes, held_out, slopes=False)
        return sum(value / gains[goal] for goal, value in values.items())

    if state.exists():
        kept = torch.load(state, weights_only=True)
        goals = goals.after(kept["before"].numpy())
    else:
        before = _before(goals)
        goals = goals.after(before)
        zeros = torch.zeros(start.size, dtype=torch.float64)
        kept = {
            "before": torch.from_numpy(before),
            "changes": torch.from_numpy(start),
            "best": torch.from_numpy(start),
            "budget": goals.budget,
            "losses": [judge(start)],
            "step": 0,
            _OWN: zeros,
            _CORPUS: zeros,
        }
    cost = goals.flat(Statistic.COST)
    noise = {
        _OWN: goals.flat(Statistic.OWN_VARIANCE),
        _CORPUS: goals.flat(Statistic.VARIANCE),
    }
    with show.track("learning", PASSES * _PARTS, "steps", kept["step"]) as advance:
        for turn in range(PASSES):
            for part, chosen in enumerate(_parts(learned, seed, turn)):
                step = turn * _PARTS + part + 1
                if step <= kept["step"]:
                    continue
                _, falls = goals.measure(kept["changes"].numpy(), chosen, slopes=True)
                # Over the first pass it is the mean of all, later of about the last pass.
                new = max(1 / step, 1 / _PARTS)
                seen = min(step / _PARTS, 1) * (1 - 1 / _HELD_OUT)
                benefit = np.zeros(start.size)
                for goal, fall in falls.items():
                    mean = (1 - new) * kept[goal].numpy() + new * fall
                    kept[goal] = torch.from_numpy(mean)
                    benefit += shrunk(mean, noise[goal] / seen) / gains[goal]
                best = amounts(benefit, cost, kept["budget"])
                here = kept["changes"].numpy()
                kept["changes"] = torch.from_numpy(here + 2 / (step + 2) * (best - here))
                kept["step"] = step
                _save(state, kept)
                advance(1)
            if len(kept["losses"]) == turn + 1:
                changes = kept["changes"].numpy()
                by = scale(changes)
                kept["changes"] = torch.from_numpy(np.minimum(by * changes, 1))
                kept["budget"] *= by**2
                loss = judge(kept["changes"].numpy())
                show.note(
                    f"pass {turn + 1} of at most {PASSES}: {loss:.4f} on held-out texts, "
                    f"{kept['losses'][0]:.4f} at the start"
                )
                if loss < min(kept["losses"]):
                    kept["best"] = kept["changes"]
                kept["losses"].append(loss)
                _save(state, kept)
            if kept["losses"][turn + 1] >= min(kept["losses"][: turn + 1]):
                break
    found: Floats = kept["best"].numpy()
    return found


def _before(goals: Goals) -> Floats:
    """The original's log-likelihood of each own sample, float64 [texts]."""
    texts = goals.texts[Statistic.OWN]
    found = np.zeros(len(texts.placed))
    work = goals.work(Statistic.OWN, np.arange(found.size))
    tokens = sum(passage.batch.tokens for passage in work)
    with torch.inference_mode(), show.track("likelihoods", tokens, "tokens") as advance:
        for passage in work:
            found[list(passage.batch.indices)] = goals.log_likelihoods(passage).double().cpu()
            advance(passage.batch.tokens)
    return found


def _split(goals: Goals, seed: int) -> tuple[Chosen, Chosen]:
    """The texts that are learned from, and those that are held out."""
    generator = np.random.default_rng(seed)
    learned, held_out = {}, {}
    for kind in _KINDS:
        groups = goals.texts[kind].groups
        names = np.unique(groups)
        apart = generator.permutation(names)[: max(1, names.size // _HELD_OUT)]
        is_apart = np.isin(groups, apart)
        learned[kind], held_out[kind] = np.flatnonzero(~is_apart), np.flatnonzero(is_apart)
    return learned, held_out


def _parts(learned: Chosen, seed: int, turn: int) -> list[Chosen]:
    """The texts of a pass in parts of the same size, each with some of every kind."""
    generator = np.random.default_rng((seed, turn))
    pieces = {
        kind: np.array_split(generator.permutation(chosen), _PARTS)
        for kind, chosen in learned.items()
    }
    return [{kind: of[part] for kind, of in pieces.items()} for part in range(_PARTS)]


def _save(path: Path, kept: dict[str, Any]) -> None:
    with new_file(path, force=True) as stage:
        torch.save(kept, stage)
