# A virtual environment of its own, with pip: `make plan` runs the main job, `make test` runs every check.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: plan test lint types pytest clean

plan: $(VENV)/installed
	$(BIN)/budgetft plan --gpu v100-16g

test: lint types pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

pytest: $(VENV)/installed-dev
	$(BIN)/python -m pytest

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first, and from the constraints, so that the loose ranges of the project never decide which build is taken.
$(VENV)/installed: $(BIN)/python pyproject.toml .ci/constraints.txt
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt torch torchvision
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable ".[offline]"
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV)
