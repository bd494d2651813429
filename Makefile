# A virtual environment of its own, with pip: `make plan` runs the main job, `make check` what takes a minute and a half of
# the checks, `make test` all of them, `make sweep` the long versions that a release needs; `make wheel` builds the wheel, and
# `make docs` site/.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= --numprocesses 2 --dist loadfile

.PHONY: plan check test sweep docs lint types pytest quick wheel clean

plan: $(VENV)/installed
	$(BIN)/budgetft plan --gpu v100-16g

check: $(VENV)/installed-dev
	$(MAKE) --jobs 2 --output-sync=line lint types quick

test: lint types pytest

sweep: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(WORKERS) -m sweep

docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

# Tests of a file stay together: they share what is slow to make.
pytest: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(WORKERS)

quick: $(VENV)/installed-dev
	$(BIN)/python -m pytest --quick $(WORKERS)

# A wheel in dist/, built by way of the source archive; reports/checks/versions.py tries it on other versions.
wheel: $(VENV)/installed-dev
	$(BIN)/python -m build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first, and from the constraints, so that the loose ranges of the project never decide which build is taken.
$(VENV)/installed: $(BIN)/python pyproject.toml .ci/constraints.txt
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt torch torchvision
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable ".[dev]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) dist
