# Two commands set everything up: `make demo` and `make test`. Each installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two workers at most, as every worker imports torch; of one thread each, since OpenMP's threads wait in loops and take the
# cores from each other.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
DIGITS := examples/digits

.PHONY: demo test test-all test-gpu lint format bench bench-gpu docs clean help

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.core: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed, $(PYTHON) is older: make PYTHON=python3.11 ..." >&2; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# A Triton server for one slow test: 55 MB and numpy 1, so apart from the rest. Where it does not install, as on
# anything but Linux on x86-64, that test is skipped and says so. The same onnxruntime, for bits are compared.
$(VENV)/.triton: $(VENV)/.dev
	$(PYTHON) -m venv $(VENV)/triton
	-$(VENV)/triton/bin/python -m pip install --quiet 'nvidia-pytriton>=0.7,<1' \
		"onnxruntime==$$($(BIN)/python -c 'import onnxruntime; print(onnxruntime.__version__)')"
	@touch $@

demo: $(VENV)/.core ## A checkpoint to INT8 files, an engine and the report, on the embedded example
	$(BIN)/resnet-export run $(DIGITS)/pipeline.toml

test: $(VENV)/.dev ## The test suite: no network, no GPU
	$(PYTEST) -n $(WORKERS)

test-all: $(VENV)/.dev $(VENV)/.triton ## The same with the slow proofs
	PYTRITON_PYTHON=$(CURDIR)/$(VENV)/triton/bin/python $(PYTEST) -n $(WORKERS) -m 'not gpu'

test-gpu: $(VENV)/.dev ## What needs a CUDA device; skipped, never passed, without one
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.dev ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## Rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## Measurements against peers; results in benchmarks/results
	$(BIN)/python benchmarks/onnx_export.py
	$(BIN)/python benchmarks/overhead.py

bench-gpu: $(VENV)/.dev ## What needs a GPU; the results say "not run" without one
	$(BIN)/python benchmarks/gpu.py

docs: $(VENV)/.dev ## The Python API as web pages, from the docstrings, in build/api
	$(BIN)/pdoc -d google -o build/api exporter runtimes calibration

clean: ## Remove what was built, not the environment
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
