# Every target sets up what it needs; the second call installs nothing.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help run test slow lint docs bench dist check-dist clean

help:
	@echo 'make run         trains the demonstration; ARGS="..." adds flags'
	@echo 'make test        ruff, mypy, the documentation, all tests but slow ones'
	@echo 'make slow        the slow tests: hours'
	@echo 'make lint        ruff and mypy'
	@echo 'make docs        the documentation, into docs/_build/html'
	@echo 'make bench       all benchmarks'
	@echo 'make dist        wheel and source archive, into dist/'
	@echo 'make check-dist  both, tried in an empty environment'
	@echo 'make clean       removes .venv and what was built'

# A loud attack, which ruins the mean, and a quiet one, which ruins Krum.
run: $(READY)
	$(BIN)/python -m experiments.train \
	  --attack='sign_flip(scale=10.0); inner_product_manipulation(epsilon=0.1)' \
	  $(ARGS)

# Two things at a time. Whole files of tests go to one of two processes: what a
# file compiles it uses again.
test: $(READY)
	$(MAKE) --no-print-directory --jobs=2 lint docs
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(ARGS)

slow: $(READY)
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile -m slow $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

# All pages anew: what a page was warned of is not said a second time.
docs: $(READY)
	$(BIN)/python -m sphinx -b html -E -W --keep-going -q docs docs/_build/html

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

# With the versions of hatchling that the constraints say.
dist: $(READY)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m build

# Into an empty environment, and tried from outside of the clone.
check-dist: $(READY)
	$(BIN)/python -m pytest -m slow tests/release_test.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[docs,experiments,test]'
	touch $(READY)

clean:
	rm -rf $(VENV) dist docs/_build docs/experiments
