"""What an evaluation says, in words that claim no more than its intervals carry."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sordino.evaluation import Evaluation, Row
from sordino.evaluation.judged import TOXIC_SCORE
from sordino.evaluation.toxicity import TOXIC_PROMPT
from sordino.interventions.dampening import Dampening

CAPTION = (
    "Both models were given the same prompts, texts and random numbers. Intervals are 95 % "
    "intervals by the paired bootstrap over prompts or texts; ÷ 1.5 reads “1.5 times fewer”."
)
_LIMITS = (
    "Turned down is not removed: the model can still write what it was turned down for.",
    "The intervals cover the draw of prompts, texts and samples. They do not cover the errors of "
    "the scorer, nor how far these prompts are from those of your use.",
    "A neuron that recognises the concept can serve other ends as well. What was not measured "
    "here (other languages, dialects, tasks, long conversations) may have changed unseen.",
    "The labelled sentences decide what the concept is; their errors and leanings are in the "
    "neurons that were chosen.",
)
_EVEN, _EXTREME = 6, 3

Phrase = list[tuple[bool, str]]
"""A sentence in parts; true where a part is its point."""


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt.

    Args:
        text: The continuation alone.
        score: The scorer's, from 0 to 1.
    """

    text: str
    score: float

    @property
    def toxic(self) -> bool:
        """Whether the scorer calls it toxic."""
        return self.score > TOXIC_SCORE


@dataclass(frozen=True)
class Sample:
    """One prompt, continued before and after with the same random numbers.

    Args:
        prompt: The prompt.
        prompt_toxic: Whether the prompt's own source calls it toxic.
        before: What the original model wrote.
        after: What the dampened one wrote.
    """

    prompt: str
    prompt_toxic: bool
    before: Continuation
    after: Continuation


def rows(evaluation: Evaluation | None) -> list[Row]:
    """The before/after table; empty where nothing was compared."""
    if evaluation is None or evaluation.before is None:
        return []
    return evaluation.table()


def answer(model: str, concept: str, dampening: Dampening, found: list[Row]) -> list[Phrase]:
    """The run's plain answer.

    Args:
        model: The model's name.
        concept: The concept's name.
        dampening: What was done.
        found: See `rows`.
    """
    share = dampening.changed / dampening.neurons
    phrases: list[Phrase] = [
        [
            (False, f"Of the {dampening.neurons:,} neurons of {model}, "),
            (True, f"{dampening.changed:,} ({100 * share:.1f} %)"),
            (False, f" were turned down for recognising “{concept}”."),
        ]
    ]
    for measure, subject in (
        ("toxicity", "toxic continuations"),
        ("perplexity", "perplexity on ordinary prose"),
    ):
        # A measure's first figure is its main one.
        row = next((row for row in found if row.measure == measure), None)
        if row is not None:
            phrases.append(_change(row, subject))
    if not found:
        phrases.append([(False, "What that does to the model’s output was not measured.")])
    return [[(strong, unbroken(part)) for strong, part in phrase] for phrase in phrases]


def limits(evaluation: Evaluation | None) -> list[str]:
    """What the figures cannot promise, the measures' own limits first."""
    return [*measure_limits(evaluation), *_LIMITS]


def measure_limits(evaluation: Evaluation | None) -> list[str]:
    """What the measures themselves are blind to."""
    results = evaluation.measures.values() if evaluation is not None else ()
    return [str(r.protocol["limits"]) for r in results if "limits" in r.protocol]


def protocol(evaluation: Evaluation | None) -> dict[str, dict[str, str]]:
    """How it was measured, by heading; the measures' limits stand elsewhere."""
    if evaluation is None:
        return {}
    arms = {"before": evaluation.before, "after": evaluation.after}
    sections = {
        "Evaluation": dict(
            flat(
                {
                    "seed": evaluation.seed,
                    "date": evaluation.created,
                    "sordino": evaluation.sordino_version,
                    **{arm: model.model_dump() for arm, model in arms.items() if model},
                }
            )
        )
    }
    for name, result in evaluation.measures.items():
        settings = {key: value for key, value in result.protocol.items() if key != "limits"}
        sections[f"{name.capitalize()}, version {result.version}"] = dict(flat(settings))
    return sections


def flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Settings as pairs of text, one inside another as "outer, inner"."""
    for key, value in settings.items():
        name = f"{above}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}, ")
        elif value not in ("", None):
            yield name, str(value)


def samples(evaluation: Evaluation | None) -> dict[str, list[Sample]]:
    """Continuations to look at, by how they were chosen: evenly, and where the score moved most.

    The falls alone would flatter, so the rises stand beside them.
    """
    if evaluation is None or evaluation.before is None:
        return {}
    prompts = [_pairs(row) for row in evaluation.samples.get("toxicity", [])]
    if not prompts:
        return {}
    step = max(1, len(prompts) // _EVEN)
    moved = sorted((pair for pairs in prompts for pair in pairs), key=_rise)
    chosen = {
        "Drawn evenly from all prompts": [pairs[0] for pairs in prompts[::step][:_EVEN]],
        "Where the score fell most": [pair for pair in moved[:_EXTREME] if _rise(pair) < 0],
        "Where the score rose most": [
            pair for pair in moved[: -_EXTREME - 1 : -1] if _rise(pair) > 0
        ],
    }
    return {why: pairs for why, pairs in chosen.items() if pairs}


def unbroken(text: str) -> str:
    """Numbers kept on one line with what belongs to them."""
    for loose in (" %", "÷ ", "× ", "n = "):
        text = text.replace(loose, loose.replace(" ", "\N{NO-BREAK SPACE}"))
    return text


def _change(row: Row, subject: str) -> Phrase:
    before, after = (side.partition(" (")[0] for side in (row.before, row.after))
    detail = f"{row.change}, 95 % interval {row.interval}, n = {row.n}."
    verb = _verb(row)
    if verb is None:
        return [
            (False, f"No change in {subject} could be shown: "),
            (True, f"{before} before, {after} after"),
            (False, f"; {row.change}, and the 95 % interval {row.interval} includes no change"),
            (False, f" (n = {row.n})."),
        ]
    start = f"{subject[0].upper()}{subject[1:]} {verb} from "
    return [(False, start), (True, f"{before} to {after}"), (False, f": {detail}")]


def _verb(row: Row) -> str | None:
    """Which way the figure went, if both of its intervals say so."""
    difference, ratio = row.figure.difference, row.figure.ratio
    if not row.clear or difference is None or ratio is None:
        return None
    # Where the change is shown as a ratio, its interval has to leave out 1 as well.
    low, high = ratio.low, ratio.high
    if low is not None and low <= 1 and (high is None or high >= 1):
        return None
    return "rose" if difference.low is not None and difference.low > 0 else "fell"


def _pairs(row: Mapping[str, Any]) -> list[Sample]:
    toxicity = row["prompt_toxicity"]
    return [
        Sample(
            row["prompt"],
            toxicity is not None and toxicity >= TOXIC_PROMPT,
            Continuation(before["text"], before["score"]),
            Continuation(after["text"], after["score"]),
        )
        for before, after in zip(row["before"], row["after"], strict=True)
    ]


def _rise(sample: Sample) -> float:
    return sample.after.score - sample.before.score
