"""Scaled rows of matrices as products of low rank."""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]


def pair(factors: Values, rows: Values) -> tuple[Values, Values]:
    """The two matrices whose product B·A is the change of scaled rows, for many matrices at once.

    All have the rank of the matrix in which most rows change, and at least 1.

    Args:
        factors: The factor of each row, float32 [matrices, rows].
        rows: The rows whose factor is not 1, matrix after matrix, float32 [changed, inputs].

    Returns:
        A, float32 [matrices, rank, inputs], and B, float32 [matrices, rows, rank].

    Example:
        >>> a, b = pair(np.float32([[1, 0.5]]), np.float32([[2, 4]]))
        >>> (b @ a).tolist()
        [[[0.0, 0.0], [-1.0, -2.0]]]
    """
    changed = factors != 1
    rank = max(1, int(changed.sum(axis=1).max()))
    matrix, row = np.nonzero(changed)
    place = (changed.cumsum(axis=1) - 1)[matrix, row]
    a = np.zeros((len(factors), rank, rows.shape[1]), np.float32)
    b = np.zeros((*factors.shape, rank), np.float32)
    a[matrix, place] = rows
    b[matrix, row, place] = factors[matrix, row] - np.float32(1)
    return a, b
