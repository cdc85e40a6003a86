# Everything is set up from nothing: Python 3.11 or later, make and the package index are enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
OUT ?= demo

.PHONY: demo test test-slow bench lint format clean

$(BIN)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(BIN)/.ready  ## the whole job on a small real model; goes on where it was interrupted
	$(BIN)/sordino run kit:smollm2 --concept insults --prompts kit --scorer alt-profanity-check \
		--output $(OUT)/quiet

test: $(BIN)/.ready  ## the default tests, with coverage
	$(BIN)/python -m pytest --numprocesses 2 --cov --cov-report term:skip-covered

test-slow: $(BIN)/.ready  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

bench: $(BIN)/.ready  ## how fast and how large, against floors and ordinary ways; fills in the tables
	$(BIN)/python -m benchmarks

lint: $(BIN)/.ready  ## lint, format check, strict types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(BIN)/.ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv $(OUT) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
