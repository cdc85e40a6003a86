"""Whole commands as functions: each takes its inputs, and leaves files and a page."""
