# What a newcomer types. Needs Python 3.11 or newer, make and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
PINS := pyproject.toml constraints.txt
# Hessians are compared with theirs. They ask for torchvision, which they do without, and which an
# index may have for CUDA alone; then it breaks whatever imports it.
HESSIANS := curvlinops-for-pytorch backpack-for-pytorch einconv einops unfoldNd linear_operator \
  pyhessian

.PHONY: help demo test lint bench docs clean

help:
	@echo "make demo    train 315 runs on real digits and say which optimizer is best"
	@echo "make test    the whole test suite"
	@echo "make lint    ruff and mypy"
	@echo "make bench   the speed tables of benchmarks/RESULTS.md (an hour)"
	@echo "make docs    the reference page, from the registry"
	@echo "make clean   remove the virtual environment"

demo: $(VENV)/.package
	$(BIN)/thalweg study digits

# A process a core; threads that wait must not keep another's core busy.
test: $(VENV)/.test
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist worksteal -rs

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks --write

docs: $(VENV)/.package
	$(BIN)/python -m thalweg.optim.reference > docs/optimizers.md

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Thalweg needs Python 3.11 or newer; give one with: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make virtual environments; install its venv package"; rm -rf $(VENV); exit 1; }

$(VENV)/.package: $(VENV)/bin/python $(PINS)
	$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.package
	$(PIP) -e '.[test,frameworks,peers]'
	$(PIP) --no-deps $(HESSIANS)
	@touch $@

$(VENV)/.lint: $(VENV)/.package
	$(PIP) -e '.[lint]'
	@touch $@

$(VENV)/.bench: $(VENV)/.package
	$(PIP) -e '.[bench]'
	$(PIP) --no-deps $(HESSIANS)
	@touch $@
