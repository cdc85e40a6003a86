"""The statistics of a neuron: their names, dtypes, and the arguments that ask for them."""

from enum import StrEnum
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray


class Asked(StrEnum):
    """The arguments that ask for statistics beyond those that are always measured.

    The value is the end of a sentence such as "find it again with".
    """

    ALWAYS = ""
    STRATA = '`stratify="length"`'
    MOMENTS = '`pooling="mean"` and `moments=True`'
    ATTRIBUTION = "`attribution`"
    OWN = "`attribution` and `own`"
    PROTECTED = "`attribution` with protected texts"
    REFUSALS = "`attribution` with protected refusals"


class Statistic(StrEnum):
    """A statistic of each of a site's neurons. The value is its name in an artefact.

    A member is its name: it equals the string, and is found in dictionaries by it.

    Attributes:
        dtype: Of its values, float32 or int32.
        asked: The arguments that ask for it.

    Example:
        >>> from sordino.expertise.statistic import Statistic
        >>> Statistic.COST == "cost", Statistic("cost").asked.name
        (True, 'ATTRIBUTION')
    """

    dtype: np.dtype[np.generic]
    asked: Asked

    def __new__(cls, name: str, dtype: str = "float32", asked: Asked = Asked.ALWAYS) -> Self:
        """A member; the enumeration calls this."""
        self = str.__new__(cls, name)
        self._value_, self.dtype, self.asked = name, np.dtype(dtype), asked
        return self

    AUROC = "auroc"
    STRATIFIED_AUROC = "stratified_auroc", "float32", Asked.STRATA
    STRONGEST_1 = "strongest_1", "int32"
    STRONGEST_2 = "strongest_2", "int32"
    STRONGEST_3 = "strongest_3", "int32"
    REACHED_POSITIVE = "reached_positive", "int32"
    REACHED_NEGATIVE = "reached_negative", "int32"
    MEAN_POSITIVE = "mean_positive", "float32", Asked.MOMENTS
    MEAN_NEGATIVE = "mean_negative", "float32", Asked.MOMENTS
    TRANSPORT_SCALE = "transport_scale", "float32", Asked.MOMENTS
    POSITIVE = "attribution_positive", "float32", Asked.ATTRIBUTION
    NEGATIVE = "attribution_negative", "float32", Asked.ATTRIBUTION
    VARIANCE = "attribution_variance", "float32", Asked.ATTRIBUTION
    COST = "cost", "float32", Asked.ATTRIBUTION
    PROTECTED = "attribution_protected", "float32", Asked.PROTECTED
    UNPROTECTED_NEGATIVE = "attribution_negative_unprotected", "float32", Asked.PROTECTED
    UNPROTECTED_VARIANCE = "attribution_variance_unprotected", "float32", Asked.PROTECTED
    UNPROTECTED_COST = "cost_unprotected", "float32", Asked.PROTECTED
    REFUSALS = "attribution_refusals", "float32", Asked.REFUSALS
    WITHOUT_REFUSALS_COST = "cost_without_refusals", "float32", Asked.REFUSALS
    OWN = "attribution_own", "float32", Asked.OWN
    OWN_VARIANCE = "attribution_own_variance", "float32", Asked.OWN


class Part(StrEnum):
    """The sums over texts that attribution takes."""

    TOTAL = "total"
    """The sum of weighted attributions."""
    SQUARES = "squares"
    """The sum of their squares."""
    DRAWN = "drawn"
    """The sum of squared attributions to tokens that the model drew, for the cost."""
    REACHED = "reached"
    """The number of texts that reached each MoE expert."""


class Sum(NamedTuple):
    """The name of one sum: its site, its texts, and its terms."""

    site: str
    of: Statistic
    part: Part


Sums = dict[Sum, torch.Tensor]
"""float64 [neurons]; of texts reached, [experts]."""


UNPROTECTED = {
    Statistic.NEGATIVE: Statistic.UNPROTECTED_NEGATIVE,
    Statistic.VARIANCE: Statistic.UNPROTECTED_VARIANCE,
    Statistic.COST: Statistic.UNPROTECTED_COST,
}
"""Those that protection changes, each with what it would be without any."""

WITHOUT_REFUSALS = {Statistic.COST: Statistic.WITHOUT_REFUSALS_COST}
"""The same of refusals, where there are protected texts beside them."""

STRONGEST = (Statistic.STRONGEST_1, Statistic.STRONGEST_2, Statistic.STRONGEST_3)
"""The sentences that excite a neuron most, the strongest first."""
REACHED = (Statistic.REACHED_POSITIVE, Statistic.REACHED_NEGATIVE)
"""How many sentences of each class reached a MoE expert's neuron; sites without experts lack it."""
SHARES = (Statistic.AUROC, Statistic.STRATIFIED_AUROC)
"""Those that are in [0, 1]."""

Values = NDArray[np.generic]
Tensors = dict[str, dict[Statistic, torch.Tensor]]
"""Statistics by site path, [neurons] each, while they are being measured."""
