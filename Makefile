# `make demo` and `make test` do everything on a machine with Python >= 3.10, gcc and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= auto

.PHONY: demo test test-slow lint typecheck format docs clean

demo: $(VENV)/.core
	$(BIN)/qcompiler demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev typecheck
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Four folders are one package (pyproject.toml), which the editable install does by an import hook that mypy cannot
# see: give it a tree that looks like the installed package. tests/face/test_typecheck.py seeds an error in each.
STAGE ?= build/typecheck
typecheck: $(VENV)/.dev
	rm -rf $(STAGE) && mkdir -p $(STAGE)/qcompiler
	ln -s $(CURDIR)/qcompiler/* $(CURDIR)/passes $(CURDIR)/codegen $(CURDIR)/sim $(STAGE)/qcompiler/
	MYPYPATH=$(STAGE) $(BIN)/mypy -p qcompiler

# The command-line page and the support matrix are generated from the code; tests/face/test_docs.py holds them to it.
docs: $(VENV)/.core
	$(BIN)/python docs/generate.py

clean:
	rm -rf build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(VENV)/.core $@
