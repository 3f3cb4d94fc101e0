# Every target sets up what it needs; the second call installs nothing.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test lint bench clean

run: $(READY)
	$(BIN)/python -m experiments.train $(ARGS)

# Whole files go to one of two processes: what a file compiles it uses again.
test: $(READY) lint
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.rules $(ARGS)
	$(BIN)/python -m benchmarks.rounds $(ARGS)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[experiments,test]'
	touch $(READY)

clean:
	rm -rf $(VENV)
