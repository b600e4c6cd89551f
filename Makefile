# make demo | test | long | quick | lint | bench: each sets up .venv when pyproject.toml or constraints.txt changed, and not otherwise.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# one worker per core, each with one thread: torch and BLAS would start as many again
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.PHONY: demo test long quick lint bench lock clean

demo: $(READY)
	$(BIN)/sentinode demo --output demo --overwrite

test: $(READY) lint
	$(PYTEST) -m "not long"

# what takes minutes: every command of the README
long: $(READY)
	$(PYTEST) -m long

# what a change is tried with while it is made: the linters, and every test but the slow ones
quick: $(READY) lint
	$(PYTEST) -m "not slow and not long"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# all but those that need files which no fresh clone has
bench: $(READY)
	for script in $(filter-out benchmarks/mask_rules.py benchmarks/phantom_likeness.py, $(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sentinode needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	touch $@

# constraints.txt is the full lock of a Python 3.11 environment; the build tag of torch is left to the index
lock:
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf .venv demo
