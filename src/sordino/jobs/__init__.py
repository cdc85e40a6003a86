"""The commands without a folder of their own, as functions."""
