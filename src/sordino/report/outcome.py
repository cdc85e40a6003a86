"""An evaluation in words that claim no more than its intervals support."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

from sordino.evaluation import MEASURES, Estimate, Evaluation, Row
from sordino.evaluation.groups import in_words
from sordino.evaluation.measures.toxicity import TOXIC_PROMPT
from sordino.evaluation.result import form_of, measure_of, points_shown, value_shown
from sordino.evaluation.scorer import TOXIC_SCORE
from sordino.files import capital
from sordino.interventions.dampening import Dampening

CAPTION = (
    "Both models were given the same prompts, texts and random numbers. Intervals are 95 % "
    "intervals by the paired bootstrap over prompts or texts; ÷ 1.5 reads “1.5 times fewer”."
)
LIMITS = (
    "Dampening is not removing: the model can still write text with the concept.",
    "The intervals cover the draw of prompts, texts and samples. They do not cover the errors of "
    "the scorer, nor the difference between these prompts and yours.",
    "A neuron that recognises the concept can serve other purposes as well. What was not measured "
    "here (other languages, dialects, tasks, long conversations) may have changed unnoticed.",
    "The labelled sentences define the concept; their errors and biases are in the chosen neurons.",
)
"""The limits of every figure, whatever was measured."""

_EVEN, _EXTREME = 6, 3
# The divergence budget that we recommend, 0.05 nats, raises perplexity by about a twentieth.
_DAMAGING = 1.25

Phrase = list[tuple[bool, str]]
"""A sentence in parts; true for the part that is emphasised."""
Pieces = tuple[tuple[bool, str], ...]
"""A text in pieces; true for pieces that the other arm's text lacks."""


@dataclass(frozen=True)
class Family:
    """The figures of one measure, with all its pre-prompts.

    Args:
        name: The measure's name.
        title: Its title.
        about: What it says, in a sentence.
        rows: Its main figures, without a pre-prompt if it was measured without one.
        led: Its first figure by pre-prompt, if there are several.
        details: All its other figures.
        not_run: Why it was not measured, or not in every form; "" if it was.
    """

    name: str
    title: str
    about: str
    rows: tuple[Row, ...] = ()
    led: Mapping[str, Row] = field(default_factory=dict)
    details: tuple[Row, ...] = ()
    not_run: str = ""

    @property
    def groups(self) -> dict[str, Row]:
        """The shares of single groups, by the first scorer, without a pre-prompt."""
        found: dict[str, Row] = {}
        for row in self.details:
            if row.measure == self.name and row.figure.group:
                # The first scorer's figures come first.
                found.setdefault(": ".join(map(in_words, row.figure.group)), row)
        return found


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt.

    Args:
        text: The continuation alone.
        score: Its score, from 0 to 1.
        parts: The text in pieces; see `Pieces`.
    """

    text: str
    score: float
    parts: Pieces = ()

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
        about: The group that the prompt is about; "" if there is none.
        before: The original model's continuation.
        after: The dampened model's.
    """

    prompt: str
    prompt_toxic: bool
    about: str
    before: Continuation
    after: Continuation


def rows(evaluation: Evaluation | None) -> list[Row]:
    """The before/after table; empty if nothing was compared."""
    if evaluation is None or evaluation.before is None:
        return []
    return evaluation.table()


def families(evaluation: Evaluation | None) -> list[Family]:
    """The figures by measure, with the reasons why some were not measured."""
    if evaluation is None or evaluation.before is None:
        return []
    by_key: dict[str, list[Row]] = {}
    for row in rows(evaluation):
        by_key.setdefault(row.measure, []).append(row)
    keys: dict[str, list[str]] = {}
    for key in evaluation.measures:
        keys.setdefault(measure_of(key), []).append(key)
    return [_family(name, members, evaluation, by_key) for name, members in keys.items()]


def _family(
    name: str, keys: Sequence[str], evaluation: Evaluation, by_key: Mapping[str, Sequence[Row]]
) -> Family:
    title, about = _find_declared(name)
    taken = [key for key in keys if key in by_key]
    reasons = dict.fromkeys(evaluation.measures[key].not_run for key in keys)
    reason = "; ".join(reason for reason in reasons if reason)
    if not taken:
        return Family(name, title, about, not_run=reason)
    first = name if name in taken else taken[0]
    main = [row for row in by_key[first] if not row.figure.detail]
    led = {form_of(key) or "none": by_key[key][0] for key in taken} if len(taken) > 1 else {}
    shown = {id(row) for row in (*main, *led.values())}
    others = [row for key in taken for row in by_key[key] if id(row) not in shown]
    return Family(name, title, about, tuple(main), led, tuple(others), reason)


def _find_declared(name: str) -> tuple[str, str]:
    """A measure's title and sentence; only its name if its package is not installed."""
    kind = MEASURES.get(name)
    return (name.capitalize(), "") if kind is None else (kind.title, kind.sentence)


def growth_of(row: Row) -> Estimate | None:
    """A figure's ratio after ÷ before, or None; a figure that is itself a ratio is returned."""
    ratio = row.figure.after if row.figure.unit == "times" else row.figure.ratio
    if ratio is None or row.figure.unit == "times" or row.figure.ratio_of == "after/before":
        return ratio
    value, low, high = (1 / end if end else None for end in (ratio.value, ratio.high, ratio.low))
    return Estimate(value, low, high)


def name_of_change(dampening: Dampening) -> str:
    """The verb for what happened to the neurons: "dampened", or "changed" if not only that."""
    factors = [values for values in dampening.factors.values() if values.size]
    lowered = all(float(values.min()) >= 0 and float(values.max()) <= 1 for values in factors)
    return "dampened" if lowered and not dampening.shifted else "changed"


def answer(
    model: str,
    concept: str,
    dampening: Dampening,
    found: list[Row],
    *,
    refusals_protected: bool = False,
) -> list[Phrase]:
    """The run's plain answer; what it has to say of refusals that were lost comes first.

    Args:
        model: The model's name.
        concept: The concept's name.
        dampening: What was done.
        found: See `rows`.
        refusals_protected: See `refusing`.
    """
    share = dampening.changed / dampening.neurons
    warned = refusing(found, refusals_protected=refusals_protected)
    phrases: list[Phrase] = [[(True, said)] for said in warned.values()]
    phrases += [
        [
            (False, f"Of the {dampening.neurons:,} neurons of {model}, "),
            (True, f"{dampening.changed:,} ({100 * share:.1f} %)"),
            (False, f" were {name_of_change(dampening)} to weaken “{concept}”."),
        ]
    ]
    phrases += [
        _change(row, subject) for row, subject in _main(found) if row.figure.name not in warned
    ]
    if caution := damage(found):
        phrases.append([(True, caution)])
    if not found:
        phrases.append([(False, "The effect on the model’s output was not measured.")])
    return [[(strong, unbroken(part)) for strong, part in phrase] for phrase in phrases]


def _main(found: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """The figures of the answer, each with its subject in words."""
    firsts: dict[str, Row] = {}
    for row in found:
        firsts.setdefault(row.measure, row)  # a measure's first figure is its main one
    both = {"toxicity", _REPLIES} <= firsts.keys()
    main = next((key for key in firsts if measure_of(key) == "toxicity"), "")
    subjects = {
        main: "toxic continuations of raw text" if both else "toxic continuations",
        _REPLIES: "toxic replies in chat",
    }
    yield from ((firsts[key], said) for key, said in subjects.items() if key in firsts)
    for row in found:
        if measure_of(row.measure) == "refusals" and row.figure.name in _REFUSED:
            yield row, _REFUSED[row.figure.name]
        if row.measure == "coverage" and row.figure.name == "perplexity.worst":
            yield row, f"{row.label[0].lower()}{row.label[1:]}"
    for measure, subject in (
        ("piqa", "right answers to everyday questions (PIQA)"),
        ("perplexity", "perplexity on ordinary prose"),
    ):
        if measure in firsts:
            yield firsts[measure], subject


_REPLIES = "toxicity:chat"
_LESS = " A smaller --divergence changes less."
_REFUSED = {
    "refused.safe": "refusals of safe prompts that look unsafe",
    "refused.unsafe": "refusals of unsafe prompts",
}


def refusing(found: Sequence[Row], *, refusals_protected: bool | None = False) -> dict[str, str]:
    """Warnings if significantly fewer unsafe requests are refused, or more safe ones.

    Args:
        found: See `rows`.
        refusals_protected: Whether the edit protects the model's refusals already; None to leave
            out what can be done.

    Returns:
        By the figure's name, what is said of it.
    """
    unsafe, safe = {
        None: ("", ""),
        False: (" With contrast, --protect refusals protects what it refuses.", _LESS),
        True: (f" They were protected, which did not keep them all.{_LESS}", _LESS),
    }[refusals_protected]
    said = {}
    for row in found:
        name, difference = row.figure.name, row.figure.difference
        if measure_of(row.measure) != "refusals" or name not in _REFUSED or difference is None:
            continue
        arms = (row.figure.before, row.figure.after)
        before, after = ("" if arm is None else value_shown(arm, row.figure.unit) for arm in arms)
        points, interval = points_shown(difference)
        figures = (
            f"{before} before, {after} after ({points}; 95 % interval {interval}; n = {row.n})"
        )
        if name == "refused.unsafe" and difference.high is not None and difference.high < 0:
            said[name] = f"The model now refuses fewer unsafe requests: {figures}.{unsafe}"
        if name == "refused.safe" and difference.low is not None and difference.low > 0:
            said[name] = f"It now refuses more safe prompts that look unsafe: {figures}.{safe}"
    return said


def damage(found: Sequence[Row]) -> str:
    """A warning if ordinary prose became much less likely, else "".

    Args:
        found: See `rows`.
    """
    for row in found:
        if measure_of(row.measure) == "perplexity":
            times = growth_of(row)
            if times is not None and (times.low or 0) > _DAMAGING:
                return (
                    f"Perplexity on ordinary prose is {times.value:,.1f} times what it was: this "
                    "change damages the model. --divergence 0.05 limits it to a measured "
                    "divergence; --strength 0.5 makes it half as strong."
                )
    return ""


def limits(evaluation: Evaluation | None) -> list[str]:
    """The limits of the figures, the measures' own first."""
    return [*measure_limits(evaluation), *LIMITS]


def measure_limits(evaluation: Evaluation | None) -> list[str]:
    """The blind spots of the measures, each once: two measures can share a scorer."""
    results = evaluation.measures.values() if evaluation is not None else ()
    found = (str(result.protocol["limits"]) for result in results if "limits" in result.protocol)
    return list(dict.fromkeys(found))


def protocol(evaluation: Evaluation | None) -> dict[str, dict[str, str]]:
    """How it was measured, by heading, without the measures' limits."""
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
        if result.not_run:
            settings["not_run"] = result.not_run
        if result.before:
            settings["model before"] = f"measured on {result.before.measured}, and kept since"
        sections[f"{name.capitalize()}, version {result.version}"] = dict(flat(settings))
    return sections


def flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Settings as pairs of text, with six digits; nested names become "outer, inner"."""
    for key, value in settings.items():
        name = f"{above}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}, ")
        elif value not in ("", None):
            yield name, f"{value:.6g}" if isinstance(value, float) else str(value)


def samples(evaluation: Evaluation | None) -> dict[str, dict[str, list[Sample]]]:
    """Continuations to show, by measure and by how they were chosen.

    Some are drawn evenly. Others are those whose score moved most, in both directions, since the
    falls alone would flatter. Measures of replies in chat are apart. Measures without scores, and
    those with pre-prompts, are only in the file of samples.
    """
    if evaluation is None or evaluation.before is None:
        return {}
    found = {}
    for name, rows_of in evaluation.samples.items():
        form, written = form_of(name), rows_of[0].get("after", [None])
        scored = all(isinstance(one, dict) for one in written)
        if form not in ("", "in chat") or not scored:
            continue
        prompts = [pairs for pairs in map(_pairs, rows_of) if pairs]
        step = max(1, len(prompts) // _EVEN)
        moved = sorted((pair for pairs in prompts for pair in pairs), key=_rise)
        chosen = {
            "Drawn evenly from all prompts": [pairs[0] for pairs in prompts[::step][:_EVEN]],
            "Where the score fell most": [pair for pair in moved[:_EXTREME] if _rise(pair) < 0],
            "Where the score rose most": [
                pair for pair in moved[: -_EXTREME - 1 : -1] if _rise(pair) > 0
            ],
        }
        title = _find_declared(measure_of(name))[0]
        found[f"{title}, {form}" if form else title] = {
            why: [_mark(pair) for pair in pairs] for why, pairs in chosen.items() if pairs
        }
    return found


def differences(before: str, after: str) -> tuple[Pieces, Pieces]:
    """Both texts in pieces, each with whether the other text lacks it.

    Texts are compared word by word. A single word in common does not count, unless both texts begin
    with it.

    Args:
        before: One text.
        after: The other.
    """
    first, second = ([*re.findall(r"\s*\S+|\s+$", text)] for text in (before, after))
    matcher = SequenceMatcher(
        None, [word.strip() for word in first], [word.strip() for word in second], autojunk=False
    )
    kept: tuple[set[int], set[int]] = (set(), set())
    for block in matcher.get_matching_blocks():
        if block.size > 1 or (block.size and block.a == block.b == 0):
            kept[0].update(range(block.a, block.a + block.size))
            kept[1].update(range(block.b, block.b + block.size))
    return _pieces(first, kept[0]), _pieces(second, kept[1])


def _pieces(words: Sequence[str], kept: Collection[int]) -> Pieces:
    """A text's words joined into runs that are kept and runs that are not."""
    runs = groupby(enumerate(words), lambda numbered: numbered[0] not in kept)
    return tuple((differs, "".join(word for _, word in run)) for differs, run in runs)


def unbroken(text: str) -> str:
    """Text with no line break between a number and its unit or sign."""
    for loose in (" %", "÷ ", "× ", "n = "):
        text = text.replace(loose, loose.replace(" ", "\N{NO-BREAK SPACE}"))
    return text


def _change(row: Row, subject: str) -> Phrase:
    figure = row.figure
    before, after = (
        "" if arm is None else value_shown(arm, figure.unit)
        for arm in (figure.before, figure.after)
    )
    detail = f"{row.change}, 95 % interval {row.interval}, n = {row.n}."
    verb = _verb(row)
    if verb is None:
        return [
            (False, f"No change in {subject} could be shown: "),
            (True, f"{before} before, {after} after"),
            (False, f"; {row.change}, and the 95 % interval {_including(row)}"),
            (False, f" (n = {row.n})."),
        ]
    start = f"{capital(subject)} {verb} from "
    return [(False, start), (True, f"{before} to {after}"), (False, f": {detail}")]


def _including(row: Row) -> str:
    return "has no ends" if row.interval == "unbounded" else f"{row.interval} includes no change"


def _verb(row: Row) -> str | None:
    """The direction in which a figure went, if both of its intervals say so."""
    difference, ratio = row.figure.difference, row.figure.ratio
    if not row.clear or difference is None or ratio is None or row.interval == "unbounded":
        return None
    # The interval of the ratio must exclude 1 as well.
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
            ": ".join(in_words(row[key]) for key in ("domain", "group") if key in row),
            Continuation(before["text"], before["score"]),
            Continuation(after["text"], after["score"]),
        )
        for before, after in zip(row["before"], row["after"], strict=True)
        if None not in (before["score"], after["score"])  # else there is nothing to compare
    ]


def _mark(sample: Sample) -> Sample:
    before, after = differences(sample.before.text, sample.after.text)
    return replace(
        sample,
        before=replace(sample.before, parts=before),
        after=replace(sample.after, parts=after),
    )


def _rise(sample: Sample) -> float:
    return sample.after.score - sample.before.score
