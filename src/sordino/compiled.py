"""Functions compiled by numba, cached for the next process where possible."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator like `numba.njit`, with a cache on disk if numba finds a folder for it.

    In a container whose user has no home and cannot write to the installation, numba finds none and
    raises; then each process compiles again. A folder that others can write to would not be safe,
    because the files in numba's cache are run.
    """

    def compile_(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function …: no locator available"
            return numba.njit(**options)(function)

    return compile_
