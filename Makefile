# Users: `make demo`. Developers: `make setup`, `make lint`, `make test`. Every target names the plain commands it runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Further arguments for pip, for example the index of PyTorch's CPU builds, which spares a machine without a GPU
# about 3 GB of CUDA libraries.
PIP_ARGS ?=
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.PHONY: help setup demo eval-demo test test-fast lint docs study-table gpu-check clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(VENV)/.installed  ## create .venv and install the project with everything the demo and the tests need

# Idempotent: runs again only when the project's own dependency lists change. torch first, so that its version is
# settled before anything else asks for one.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PIP_ARGS) torch
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PIP_ARGS) -e '.[dev]'
	touch $@

demo: setup  ## evaluate SmolLM2, fine-tune it with EntroDrop, evaluate again, write the report: about 10 minutes
	PATH="$(abspath $(BIN)):$$PATH" $(MAKE) --no-print-directory -f demo.mk

eval-demo: setup  ## score SmolLM2 on the quick suite: about two minutes
	PATH="$(abspath $(BIN)):$$PATH" $(MAKE) --no-print-directory -f demo.mk demo/eval/base/eval.json

lint: setup  ## style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup  ## all tests, the slow ones too: under 10 minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

test-fast: setup  ## unit tests only
	$(BIN)/python -m pytest -n 2 -q -m "not slow"

docs: setup  ## the documentation site, into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -W ignore -m mkdocs build --strict  # with --quiet, --strict sees nothing

study-table: setup  ## rebuild the tables and figures of docs/results.md from the study's runs
	$(BIN)/python studies/effect/table.py

gpu-check: setup  ## what only a GPU can show: parity, QLoRA, FSDP2, resume, speed; writes gpu-check.json
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python benchmarks/gpu_check.py --json gpu-check.json

clean:  ## remove what the demo made
	rm -rf demo
