# `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.

PYTHON ?= python3
BIN := .venv/bin

# The shell gets the file name untouched: spaces, quotes and dollar signs are part of it.
override FILE := $(value FILE)
export FILE

.PHONY: help demo test fast check docs clean

help:
	@echo "make demo              tag synthetic sounds with the built-in model, draw demo/street.png"
	@echo "make demo FILE=my.m4a  the same for your file (quote a name with spaces), draw demo/my.png"
	@echo "make test              all tests, on a CPU, offline"
	@echo "make fast              the tests that are not marked slow, in about a minute"
	@echo "make check             format, lint and types"
	@echo "make docs              the documentation as a site in build/site; any warning is an error"
	@echo "make clean             delete .venv, demo and caches"
	@echo "PYTHON=python3.12      in front of any of these: which Python makes .venv"

ifdef FILE
demo: .venv/installed
	@mkdir -p demo
	@$(BIN)/patchout tag "$$FILE" --events --plot demo
else
demo: .venv/installed
	@$(BIN)/python examples/demo_sounds.py demo
	@$(BIN)/patchout tag demo/synthetic-*.wav --top 3
	@$(BIN)/patchout tag demo/synthetic-street.wav --top 3 --events --plot demo/street.png
endif

test: .venv/installed
	$(BIN)/pytest -n 2 --dist loadfile

fast: .venv/installed
	$(BIN)/pytest -n auto -m "not slow"

check: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python scripts/reference.py docs/reference
	$(BIN)/python scripts/notebooks.py --pages docs/notebooks
	$(BIN)/zensical build --strict

.venv/installed: pyproject.toml constraints.txt
	@echo "installing into .venv; the first time takes some minutes"
	@$(PYTHON) -c 'import sys; sys.exit("patchout needs Python 3.10 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv demo build dist .cache docs/reference docs/notebooks .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
