# Everything is set up from nothing: Python 3.11 or later, make and the package index are enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
OUT ?= demo
RUNS ?= 1000000

.PHONY: demo results bench test test-slow fuzz lint format dist clean

$(BIN)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(BIN)/.ready  ## the whole job on a small real model; goes on where it was interrupted
	$(BIN)/sordino run kit:smollm2 --concept insults --intervention contrast --divergence 0.05 \
		--beside aura --attribution-per-class 400 --prompts kit --max-prompts 300 \
		--scorer alt-profanity-check --output $(OUT)/quiet

results: $(BIN)/.ready  ## docs/results.md from nothing, in hours; goes on where it was interrupted
	$(BIN)/sordino study methods kit:smollm2 kit:gemma3 --concept insults --dtype bfloat16 \
		--output $(OUT)/results --markdown docs/results.md

bench: $(BIN)/.ready  ## how fast and how large, against floors and ordinary ways; BENCH=--quick for a look
	$(BIN)/python -m benchmarks $(BENCH)

test: $(BIN)/.ready  ## the default tests, with coverage
	$(BIN)/python -m pytest --numprocesses 2 --cov --cov-report term:skip-covered

test-slow: $(BIN)/.ready  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

fuzz: $(BIN)/.ready  ## a million inputs for each reader of foreign files; RUNS=1000 for fewer
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[fuzz]"
	for target in gguf safetensors index; do $(BIN)/python tests/fuzz $$target $(RUNS) || exit 1; done

lint: $(BIN)/.ready  ## lint, format check, strict types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(BIN)/.ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

dist: $(BIN)/.ready  ## the wheel and the source archive, checked
	rm -rf dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dist]"
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/distribution.py dist

clean:
	rm -rf .venv $(OUT) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
