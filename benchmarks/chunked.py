"""scikit-learn's AUROC ten columns at a time, dealt out to processes.

By itself, so that the processes need not load anything else.
"""

import multiprocessing
from functools import partial
from multiprocessing.pool import Pool

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

PROCESSES = 2
_COLUMNS = 10


def workers() -> Pool:
    """The processes, ready to work."""
    pool = multiprocessing.get_context("spawn").Pool(PROCESSES)
    labels = np.array([False, True])
    pool.map(partial(_auroc, labels), [np.zeros((2, 1), np.float32)] * PROCESSES, chunksize=1)
    return pool


def by_scikit_learn(
    responses: NDArray[np.float32], labels: NDArray[np.bool_], pool: Pool
) -> NDArray[np.float64]:
    """The AUROC of each column."""
    chunks = np.array_split(responses, range(_COLUMNS, responses.shape[1], _COLUMNS), axis=1)
    return np.concatenate(pool.map(partial(_auroc, labels), chunks))


def _auroc(labels: NDArray[np.bool_], responses: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.array([roc_auc_score(labels, column) for column in responses.T])
