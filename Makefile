# Two commands do all set-up on a machine with Python 3.11: `make quickstart` and `make test`.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := help
.PHONY: help quickstart real test slow check nodes lint format bench env

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements-cpu.lock
TORCH := $(shell grep '^torch==' $(LOCK))
PYTORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
BENCHMARKS ?= retrieval learner prefix memory rollout sync step
EXPERIMENTS ?= stages rag agents_evaluation missing agents_training fusion rewards sensitivity backbones
CREMA_D ?= data/CREMA-D
RAVDESS ?= data/RAVDESS
SYNTH_RUNS := $(EXPERIMENTS:%=synth/%) synth/algorithms synth/rounds
CREMA_D_RUNS := $(EXPERIMENTS:%=crema-d/%)
.PHONY: experiments experiments-synth experiments-crema-d synth-backbone crema-d-backbone $(SYNTH_RUNS) $(CREMA_D_RUNS)
# Two experiments at once, each on a core of its own: faster than one after the other on both.
ON_ONE_CORE := retrieval.threads=1 sft.threads=1 learner.threads=1

# Written last, so an interrupted, moved or outdated environment is known by it and made again.
STAMP := $(VENV)/made-from
WANTED = $(shell { cat $(LOCK) pyproject.toml; echo $(CURDIR); } | sha256sum | cut -d ' ' -f 1)

help:
	echo "make quickstart   set up if need be, then run the main job on the embedded data"
	echo "make real         the same with SmolLM2 on RAVDESS's voices and faces (in RAVDESS=$(RAVDESS)), an hour"
	echo "make test         set up if need be, then run the tests, but for those of \`slow\` and \`nodes\`"
	echo "make slow         the tests that take minutes each: kills, sweeps, Prometheus, whole experiments"
	echo "make nodes        the tests on several nodes, made of network namespaces (as root, an hour)"
	echo "make check        what CI runs: lint, and the tests of \`test\` and \`slow\` at once"
	echo "make lint         ruff, mypy and hadolint"
	echo "make format       let ruff format the code"
	echo "make bench        run the benchmarks, one JSON line each"
	echo "make experiments  all experiments on the synthetic world and on CREMA-D (in CREMA_D=$(CREMA_D)), under results/"
	echo "make env          make $(VENV) from $(LOCK), if it is absent or outdated"

quickstart: env
	$(BIN)/affect-rl quickstart

# Parts that are there already stay.
real: env
	[[ -d data/ravdess-files ]] || $(BIN)/affect-rl data import ravdess --root "$(RAVDESS)" --out data/ravdess-files
	[[ -d data/ravdess-features ]] || $(BIN)/affect-rl data extract --data data/ravdess-files --out data/ravdess-features \
	    --speech-encoder prosody --workers 2
	[[ -d data/ravdess ]] || $(BIN)/affect-rl data describe --data data/ravdess-features --out data/ravdess
	$(BIN)/affect-rl run configs/ravdess.yaml --resume

# On two cores: for half of its time a system test waits for actors that import what they need.
test slow check nodes: export OMP_NUM_THREADS := 1
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: env
	$(PYTEST)

slow: env
	$(PYTEST) -m slow

# At once, for tests of both kinds share what they start.
check: lint
	$(PYTEST) -m "not nodes"

nodes: env
	$(BIN)/python -m pytest -m nodes

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint cluster/kubernetes/Dockerfile.*

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env
	[[ -d data/synth ]] || $(BIN)/affect-rl data synth --out data/synth
	[[ -d runs/quickstart/sft ]] || $(BIN)/affect-rl sft configs/quickstart.yaml
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name; done

# Finished parts are found again, so an interrupted run goes on.
experiments $(SYNTH_RUNS) $(CREMA_D_RUNS): export OMP_NUM_THREADS := 1
experiments: env
	$(MAKE) --no-print-directory -j2 experiments-synth experiments-crema-d

experiments-synth: $(SYNTH_RUNS)
	$(BIN)/affect-rl report results/synth/* --out results/synth.html

experiments-crema-d: $(CREMA_D_RUNS)
	$(BIN)/affect-rl report results/crema-d/* --out results/crema-d.html

$(SYNTH_RUNS): synth/%: synth-backbone
	$(BIN)/affect-rl experiment configs/experiments/$*.yaml $(and $(findstring backbones, $*), --config configs/small/synth.yaml) \
	    --out results/synth/$* $(ON_ONE_CORE)

$(CREMA_D_RUNS): crema-d/%: crema-d-backbone
	$(BIN)/affect-rl experiment configs/experiments/$*.yaml --config configs/small/crema_d.yaml \
	    --out results/crema-d/$* $(ON_ONE_CORE)

# Runs that experiments share are made by the first of them.
$(filter-out synth/stages, $(SYNTH_RUNS)): synth/stages
$(filter-out crema-d/stages, $(CREMA_D_RUNS)): crema-d/stages
synth/backbones: synth/rag
crema-d/backbones: crema-d/rag

synth-backbone: env
	[[ -d data/synth ]] || $(BIN)/affect-rl data synth --out data/synth
	[[ -d data/synth-open ]] || $(BIN)/affect-rl data synth --open-labels --out data/synth-open
	[[ -d runs/synth-backbone/sft ]] || $(BIN)/affect-rl sft configs/small/synth_backbone.yaml $(ON_ONE_CORE)

crema-d-backbone: env
	[[ -d data/crema-d ]] || $(BIN)/affect-rl data import crema-d --root "$(CREMA_D)" --out data/crema-d
	[[ -d runs/crema-d-backbone/sft ]] || $(BIN)/affect-rl sft configs/small/crema_d_backbone.yaml $(ON_ONE_CORE)

env:
	if [[ -x $(BIN)/python && "$$(cat $(STAMP) 2>/dev/null)" == "$(WANTED)" ]]; then exit 0; fi
	command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; install Python 3.11 or set PYTHON=..." >&2; exit 2; }
	echo "making $(VENV) from $(LOCK), two to five minutes"
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
