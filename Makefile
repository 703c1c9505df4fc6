# make train   set up, then train on the embedded default: NPROC ranks, ARGS for the trainer
# make test    set up, then lint, type check and the whole suite, which starts a real SLURM
# make wheel   set up, then build dist/moco_dist-VERSION-py3-none-any.whl
PYTHON ?= python3
NPROC ?= 4
ARGS ?=
BIN := .venv/bin

.PHONY: setup slurm browser train test check wheel clean

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps trackio  # asks for pillow < 13, and works with 13
	touch $@

train: setup
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node=$(NPROC) -m moco_dist.train $(ARGS)

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

slurm: setup  # who may not install says so; the tests then skip, but in CI they fail
	-$(BIN)/python -m slurm.devcluster install

browser: setup  # the same of the browser that pages are tested in
	-$(BIN)/python -m tests.browser install

test: check slurm browser
	place=$$(mktemp -d /tmp/XXXXXX) && { $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --basetemp=$$place; \
	code=$$?; rm -rf $$place; exit $$code; }  # short: messages show paths of a hundred characters whole, sockets too

wheel: setup
	rm -rf build  # else the wheel would have modules that are gone by now
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
