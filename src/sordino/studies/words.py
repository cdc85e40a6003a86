"""Figures in words, for sentences and tables."""

from collections.abc import Sequence

from sordino.evaluation import Estimate
from sordino.evaluation.result import form_of

NAMES = {
    "kit:smollm2": "SmolLM2 135M",
    "kit:gemma3": "Gemma 3 270M",
    "kit:qwen2.5-coder-0.5b": "Qwen2.5-Coder 0.5B",
    "kit:qwen2.5-coder-1.5b": "Qwen2.5-Coder 1.5B",
}


def model_name(name: str) -> str:
    """The name of a model as people say it."""
    return NAMES.get(name, name)


def listed(names: Sequence[str], none: str = "none") -> str:
    """Names with commas between them, or with semicolons if one has a comma itself.

    Args:
        names: The names.
        none: What is said if there is none.

    Example:
        >>> listed(["AurA", "contrast, corpus alone"])
        'AurA; contrast, corpus alone'
    """
    return ("; " if any("," in name for name in names) else ", ").join(names) or none


def written(key: str) -> str:
    """What the model writes for the measure with this key: "replies" or "continuations"."""
    return "replies" if form_of(key).startswith("in chat") else "continuations"


def plain(estimate: Estimate, decimals: int) -> str:
    """A figure without its interval."""
    return "undefined" if estimate.value is None else f"{estimate.value:,.{decimals}f}"


def percent(value: float | None) -> str:
    """A share in per cent."""
    return "undefined" if value is None else f"{100 * value:.1f} %"


def share(estimate: Estimate | None) -> str:
    """An estimated share in per cent, without its interval."""
    return percent(None if estimate is None else estimate.value)


def points(estimate: Estimate | None) -> str:
    """A difference of shares in points, with its interval."""
    if estimate is None or estimate.value is None:
        return "undefined"
    value, low, high = (signed_points(v) for v in (estimate.value, estimate.low, estimate.high))
    return f"{value}; {low} to {high}"


def by_points(estimate: Estimate | None) -> str:
    """A difference of shares in points with its interval, as part of a sentence."""
    if estimate is None or estimate.value is None:
        return "undefined"
    value, low, high = (signed_points(v) for v in (estimate.value, estimate.low, estimate.high))
    return f"{value} points ({low} to {high})"


def signed(value: float | None) -> str:
    """A difference with its sign."""
    return "unbounded" if value is None else f"{value:+.2f}".replace("-", "−")


def ratio(estimate: Estimate) -> str:
    """A ratio with its interval."""
    if estimate.value is None:
        return "undefined, because AurA removes nothing"
    return f"{_end(estimate.value, 1)} ({_end(estimate.low, 1)} to {_end(estimate.high, 1)})"


def interval(estimate: Estimate, decimals: int) -> str:
    """A figure with its interval, if it has one; an unbounded figure may have a lower end."""
    if estimate.value is None and estimate.low is None and estimate.high is None:
        return "undefined"
    value = _end(estimate.value, decimals)
    if estimate.low is None and estimate.high is None:
        return value
    return f"{value} ({_end(estimate.low, decimals)} to {_end(estimate.high, decimals)})"


def falls(estimate: Estimate | None) -> bool:
    """Whether a difference is below 0 throughout its interval."""
    return estimate is not None and estimate.high is not None and estimate.high < 0


def rises(estimate: Estimate | None) -> bool:
    """Whether a difference is above 0 throughout its interval."""
    return estimate is not None and estimate.low is not None and estimate.low > 0


def _end(value: float | None, decimals: int) -> str:
    return "unbounded" if value is None else f"{value:,.{decimals}f}".replace("-", "−")


def signed_points(value: float | None) -> str:
    """A difference of shares in points, with its sign."""
    return "unbounded" if value is None else f"{100 * value:+.1f}".replace("-", "−")
