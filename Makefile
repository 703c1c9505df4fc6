# make train   set up, then train on the embedded default: NPROC ranks, ARGS for the trainer
# make test    set up, then lint, type check and the whole suite
PYTHON ?= python3
NPROC ?= 4
ARGS ?=
BIN := .venv/bin

.PHONY: setup train test check clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

train: setup
	$(BIN)/torchrun --nproc_per_node=$(NPROC) -m moco_dist.train $(ARGS)

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
