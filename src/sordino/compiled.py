"""Functions compiled by numba, kept for the next process where there is a place for that."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator like `numba.njit`, with its cache on disk where numba finds a folder for it.

    In a container whose user has no home and no write access to the installation it finds none, and
    refuses; then each process compiles anew. A folder that others can write to is no way out: what
    lies in numba's cache is run.
    """

    def compile_(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # "cannot cache function …: no locator available"
            return numba.njit(**options)(function)

    return compile_
