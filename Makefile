# Everything a person types. `make demo` and `make test` set up what they need.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# One thread per process: on few cores, processes that each start a thread per core slow each other.
RUN := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python

.PHONY: demo test test-quantised test-slow lint bench setup clean

demo: setup  ## the whole job on the embedded default
	$(RUN) jobs/full_pipeline.py tiny run=demo

test: setup  ## unit tests
	$(RUN) -m pytest -n 2 --dist loadfile

# Beside the environment: every process that imports diffusers would import what is in it.
test-quantised: setup  ## unit tests of what bitsandbytes does
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .bitsandbytes bitsandbytes==0.50.2
	PYTHONPATH=.bitsandbytes $(RUN) -m pytest -n 2 -m bitsandbytes tests/test_quantised.py tests/test_adamw8bit.py

# Each file starts whole runs: more than one per core makes them wait for each other.
test-slow: setup  ## tests that take minutes: whole runs, kills, several workers
	$(RUN) -m pytest -m "slow or chaos" -n 2 --dist loadfile --no-loadscope-reorder

lint: setup  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -n 2

bench: setup  ## ratios against plain loops
	$(RUN) benchmarks/passes.py
	$(RUN) benchmarks/streaming_overlap.py
	$(RUN) benchmarks/simulation.py
	$(RUN) benchmarks/curation.py
	$(RUN) benchmarks/training.py
	$(RUN) benchmarks/evaluation.py
	$(RUN) benchmarks/arena_labels.py

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("raypref needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:  ## remove the environment and what tools left behind
	rm -rf $(VENV) .bitsandbytes .pytest_cache .mypy_cache .ruff_cache *.egg-info
