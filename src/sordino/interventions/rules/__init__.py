"""The rules, each one short pure function. Every file in this folder is imported."""
