"""The explorer: one page that shows every neuron."""

from sordino.report.explorer.exploring import Explored, explore, page_beside
from sordino.report.explorer.subject import Subject, read_subject

__all__ = ["Explored", "Subject", "explore", "page_beside", "read_subject"]
