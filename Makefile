# Every target makes the environment it needs: a machine with Python 3.11 to 3.13, a C++ compiler and make
# is enough. PYTHON picks the interpreter, VENV the folder of the environment.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test torture lint types bench wheel-test clean

demo: $(READY)                 ## the whole story on real images, in a temporary folder
	$(BIN)/compatctl demo

test: $(READY)                 ## every test
	$(BIN)/python -m pytest -n 2

torture: $(READY)              ## every write, killed, starved or cut off at every call: takes long
	COMPATCTL_TORTURE=long $(BIN)/python -m pytest -n 2 tests/torture

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)                ## every benchmark: both sides in one run, the ratio printed
	for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

wheel-test: $(READY)           ## build the wheel, install it alone, run the gate's commands from it
	$(BIN)/python tests/wheel/run.py

$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
