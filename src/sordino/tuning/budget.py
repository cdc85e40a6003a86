"""A limit on the cost of an intervention, as written on a command line."""

import re
from dataclasses import dataclass

from sordino.errors import UserError
from sordino.evaluation import MEASURES, Evaluation, Figure, Measure, Perplexity, measure

_FORM = re.compile(r"\s*([a-z-]+)\s*(<=|>=)\s*([+-]?)(\d*\.?\d+(?:e-?\d+)?)\s*(%?)\s*")
_EXAMPLES = "divergence<=0.05, perplexity<=+5%, perplexity<=33 or zero-shot>=-1%"


@dataclass(frozen=True)
class Budget:
    """A limit on one figure.

    Args:
        measure: A measure that declares on which side of its first figure a budget lies.
        limit: The figure's limit; with `relative` its relative change from the original's.
        relative: Whether the limit is relative to the original.
    """

    measure: str
    limit: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read a budget such as "divergence<=0.05", "perplexity<=+5%" or "zero-shot>=-1%".

        Raises:
            UserError: It is none.
        """
        found = _FORM.fullmatch(text)
        if found is None or _sense(found[1]) != found[2]:
            raise UserError(f"`budget={text}` is not understood: write it like {_EXAMPLES}.")
        measure, _, sign, digits, percent = found.groups()
        number = float(sign + digits)
        if bool(percent) != bool(sign) or (percent and measure == "divergence"):
            raise UserError(
                f"`budget={text}` is not understood: a change from the original has a sign and a "
                f"percent sign, a limit has neither. Write it like {_EXAMPLES}."
            )
        if measure == "divergence" and number <= 0:
            raise UserError(f"`budget={text}` allows nothing: give a divergence above 0.")
        return cls(measure, number / 100 if percent else number, bool(percent))

    def __str__(self) -> str:
        sense = _sense(self.measure)
        if self.relative:
            return f"{self.measure}{sense}{100 * self.limit:+g}%"
        return f"{self.measure}{sense}{self.limit:g}"

    def make_measure(self, texts: str) -> Measure:
        """The measure of the budget; if it reads texts, it reads these."""
        return Perplexity(texts) if self.measure == "perplexity" else measure(self.measure)

    def figure(self, evaluation: Evaluation) -> Figure:
        """The figure that is limited."""
        return evaluation.measures[self.measure].figures[0]

    def excess(self, evaluation: Evaluation) -> float:
        """By how much the budget is exceeded, in the figure's unit; 0 or less if it is kept."""
        figure = self.figure(evaluation)
        after = figure.after.value or 0.0
        limit = self.limit
        if self.relative:
            before = 0.0 if figure.before is None else figure.before.value or 0.0
            limit = before * (1 + self.limit)
        return after - limit if _sense(self.measure) == "<=" else limit - after


def _sense(name: str) -> str:
    """On which side of a measure's first figure a budget lies; "" if it measures no cost."""
    kind = MEASURES.get(name)
    return "" if kind is None else kind.budget
