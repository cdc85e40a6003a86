"""The rules, each one short pure function. A file that is put here is a rule that there is."""
