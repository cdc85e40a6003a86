"""How often an interval that is looked at every day is ever wrong.

Traffic is made up for months on end, many times over, and both the interval of `sordino replay` and
the ordinary one are looked at each evening. `python -m benchmarks.daily_looks` prints the share of
runs in which each of them ever left out the effect so far; and, where there is an effect, how soon
the interval leaves out 0.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sordino.evaluation.statistics import Floats
from sordino.replaying.sequential import boundary

_AT_ONCE = 500


@dataclass(frozen=True)
class Traffic:
    """What the two servers would answer.

    Args:
        name: What it is, in a few words.
        shares: By day, the shares of prompts that are answered toxically by the first server only
            and by the second only; what both or neither do never matters.
        days: How long.
        prompts: A day.
    """

    name: str
    shares: Callable[[NDArray[np.int64]], tuple[Floats, Floats]]
    days: int = 30
    prompts: int = 100

    @property
    def has_effect(self) -> bool:
        """Whether the servers ever differ."""
        first, second = self.shares(np.arange(self.days))
        return bool((first != second).any())


def _alone(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Shares of toxic answers, independent of each other, as shares of either alone."""
    return first * (1 - second), second * (1 - first)


def _steady(first: float, second: float) -> Callable[[NDArray[np.int64]], tuple[Floats, Floats]]:
    return lambda day: _alone(np.full(day.shape, first), np.full(day.shape, second))


def _rising(day: NDArray[np.int64]) -> tuple[Floats, Floats]:
    share = 0.01 + 0.3 * (day / day.max()) ** 2
    return _alone(share, share)


def _swinging(day: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """An effect that turns round every week."""
    share = np.where(day // 7 % 2 == 0, 0.15, 0.05)
    return _alone(np.full(day.shape, 0.1), share)


def _fading(day: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """An effect that is gone after ten days."""
    return _alone(np.full(day.shape, 0.1), np.where(day < 10, 0.03, 0.1))


TRAFFIC = (
    Traffic("5 % toxic from both", _steady(0.05, 0.05)),
    Traffic("50 % toxic from both", _steady(0.5, 0.5)),
    Traffic("1 % toxic from both, 2,000 prompts a day", _steady(0.01, 0.01), prompts=2000),
    Traffic("1 % rising to 31 % from both", _rising),
    Traffic("10 % toxic from both, for a year", _steady(0.1, 0.1), days=365),
    Traffic("10 % against 5 % and 15 %, alternating weekly", _swinging),
    Traffic("10 % against 3 %, from day 11 on 10 %", _fading),
    Traffic("12 % against 9 %", _steady(0.12, 0.09)),
    Traffic("10 % against 5 %", _steady(0.1, 0.05)),
    Traffic("6 % against 2 %", _steady(0.06, 0.02)),
)


@dataclass(frozen=True)
class Seen:
    """What came of one kind of traffic.

    Args:
        wrong: Runs in which the interval was ever wrong about the effect so far.
        wrong_usual: The same of the ordinary interval.
        runs: Runs in all.
        found: The day on which each run's interval first left out 0; infinite where none did.
    """

    wrong: int
    wrong_usual: int
    runs: int
    found: Floats

    def upper(self) -> float:
        """The upper end of the exact 95 % interval of the share of wrong runs."""
        return float(stats.binomtest(self.wrong, self.runs).proportion_ci(0.95).high)


def look_daily(traffic: Traffic, runs: int, seed: int) -> Seen:
    """Make up the traffic so many times and look at the intervals every evening."""
    generator = np.random.default_rng(seed)
    first, second = traffic.shares(np.arange(traffic.days))
    shares = np.stack([first, second, 1 - first - second], axis=1)
    count = traffic.prompts * np.arange(1, traffic.days + 1)
    effect = np.cumsum(second - first) / np.arange(1, traffic.days + 1)
    wrong, wrong_usual, found = 0, 0, []
    ends = np.empty(0)  # by how many pairs differ, which are not many numbers
    for start in range(0, runs, _AT_ONCE):
        size = (min(_AT_ONCE, runs - start), traffic.days)
        drawn = generator.multinomial(traffic.prompts, shares, size=size).cumsum(axis=1)
        differing = drawn[..., 0] + drawn[..., 1]
        if differing.max() >= len(ends):
            ends = boundary(np.arange(1.2 * differing.max() + 1))
        mean = (drawn[..., 1] - drawn[..., 0]) / count
        width = ends[differing] / count
        usual = stats.norm.ppf(0.975) * np.sqrt((differing / count - mean**2) / count)
        wrong += int((np.abs(mean - effect) > width).any(axis=1).sum())
        wrong_usual += int((np.abs(mean - effect) > usual).any(axis=1).sum())
        clear = np.abs(mean) > width
        found += np.where(clear.any(axis=1), clear.argmax(axis=1) + 1.0, np.inf).tolist()
    return Seen(wrong, wrong_usual, runs, np.array(found))


def table(runs: int, seed: int, kinds: Sequence[Traffic] = TRAFFIC) -> str:
    """What was seen, as Markdown."""
    lines = [
        f"{runs:,} runs each, seed {seed}; 30 days of 100 prompts unless stated otherwise.",
        "",
        "| answers | ever wrong | ordinary 95 % interval ever wrong | 0 excluded by day 30 | half "
        "of the runs by day |",
        "|---|--:|--:|--:|--:|",
    ]
    for kind in kinds:
        seen = look_daily(kind, runs, seed)
        left_out = middle = ""
        if kind.has_effect:
            left_out = f"{np.isfinite(seen.found).mean():.0%}".replace("%", " %")
            half = np.median(seen.found)
            middle = f"{half:.0f}" if np.isfinite(half) else "never"
        lines.append(
            f"| {kind.name} | {100 * seen.wrong / runs:.2f} % (at most {100 * seen.upper():.2f} %) "
            f"| {100 * seen.wrong_usual / runs:.1f} % | {left_out} | {middle} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=20_000, help="of each kind of traffic")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(table(given.runs, given.seed))


if __name__ == "__main__":
    main()
