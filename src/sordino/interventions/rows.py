"""The largest number of neurons that may change in each site: the rank of an adapter."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sordino.errors import UserError


@dataclass(frozen=True)
class AtMost:
    """How many neurons of each site may change.

    Args:
        rows: The most of each.
        sizes: The numbers of neurons of the sites, in their order.

    Raises:
        UserError: That is none.
    """

    rows: int
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise UserError(f"rows is {self.rows}: it must be 1 or more.")

    def largest(self, values: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which neurons have the largest values of their site; of equal ones, the first.

        Args:
            values: Of all neurons, site after site.
        """
        kept, start = np.zeros(values.size, bool), 0
        for size in self.sizes:
            order = np.argsort(-values[start : start + size], kind="stable")
            kept[start + order[: self.rows]] = True
            start += size
        return kept
