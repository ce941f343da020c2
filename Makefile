# Two commands do all set-up on a machine with Python 3.11: `make quickstart` and `make test`.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := help
.PHONY: help quickstart test lint format bench env

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements-cpu.lock
TORCH := $(shell grep '^torch==' $(LOCK))
PYTORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
BENCHMARKS ?= retrieval learner rollout sync step

# Written last, so an interrupted, moved or outdated environment is known by it and made again.
STAMP := $(VENV)/made-from
WANTED = $(shell { cat $(LOCK); echo $(CURDIR); } | sha256sum | cut -d ' ' -f 1)

help:
	echo "make quickstart   set up if need be, then run the main job on the embedded data"
	echo "make test         set up if need be, then run all tests"
	echo "make lint         ruff and mypy"
	echo "make format       let ruff format the code"
	echo "make bench        run the benchmarks, one JSON line each"
	echo "make env          make $(VENV) from $(LOCK), if it is absent or outdated"

quickstart: env
	$(BIN)/affect-rl quickstart

test: env
	$(BIN)/python -m pytest

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done

env:
	if [[ -x $(BIN)/python && "$$(cat $(STAMP) 2>/dev/null)" == "$(WANTED)" ]]; then exit 0; fi
	command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; install Python 3.11 or set PYTHON=..." >&2; exit 2; }
	echo "making $(VENV) from $(LOCK), about two minutes"
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	pip() { $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet "$$@"; }
	# PyPI's torch brings CUDA. Take the CPU build where pip is set up to find it, else PyTorch's own.
	found=$$(pip install --dry-run --no-deps --report - $(TORCH) \
	    | $(BIN)/python -c 'import json, sys; print(json.load(sys.stdin)["install"][0]["metadata"]["version"])' || true)
	if [[ $$found == *+cpu ]]; then
	    pip install --no-deps $(TORCH)
	else
	    pip install --no-deps --index-url $(PYTORCH_CPU_INDEX) $(TORCH)
	fi
	pip install --no-deps -r $(LOCK)
	pip install --no-deps --no-build-isolation -e .
	echo $(WANTED) > $(STAMP)
