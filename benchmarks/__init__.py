"""How fast and how large: each part against its floor and against the ordinary way, in one run.

`make bench` (or `python -m benchmarks`) runs them all and puts the tables into docs/performance.md;
`python -m benchmarks.auroc` runs one. `--quick` runs everything small, to see that it works.
"""
