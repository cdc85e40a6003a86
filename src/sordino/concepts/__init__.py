"""Concepts: labelled sentences of what is dampened."""

from sordino.concepts.built_in import BUILT_IN
from sordino.concepts.concept import Concept
from sordino.concepts.load import load_concept

__all__ = ["BUILT_IN", "Concept", "load_concept"]
