"""The version, and the versions of transformers with which it is tested."""

__version__ = "0.1.0"

TESTED_TRANSFORMERS = ">=5.23,<5.25"
"""The same as in pyproject.toml; `make compatibility` tests both ends."""
