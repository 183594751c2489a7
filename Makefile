# The two commands: `make demo` shows everything in minutes, `make test` checks everything.
# Each sets up what it needs: the virtual environment .venv and, where it may, the system libraries of ffcv.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Set in many containers, it would have each of the hundreds of processes that are started here compile what it imports:
# Ray's nodes then don't come up within the 15 s that Ray gives them. uv compiles nothing unless it is told to.
unexport PYTHONDONTWRITEBYTECODE
COMPILED := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)

VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.done
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
# uv resolves and installs in a fraction of pip's time. It is told what pip is told; where it can't, pip does it.
define INSTALLER
pip_says() { $(BIN)/python -m pip config list 2>/dev/null | sed -n "s/^[^=]*\.$$1='\(.*\)'\$$/\1/p" | tail -n 1; }; \
with_uv() ( \
	uv=$$(command -v uv || echo $(BIN)/uv); \
	index=$$(pip_says index-url); more=$$(pip_says extra-index-url); links=$$(pip_says find-links); \
	[ -z "$$index" ] || export UV_DEFAULT_INDEX="$$index"; \
	[ -z "$$more" ] || export UV_EXTRA_INDEX_URL="$$more"; \
	[ -z "$$links" ] || export UV_FIND_LINKS="$$links"; \
	export UV_INDEX_STRATEGY=unsafe-best-match; : of several indexes, as pip: the newest version that fits; \
	[ -x "$$uv" ] && "$$uv" pip install --quiet $(COMPILED) --python "$${into:-$(BIN)}/python" "$$@" 2>$(DONE)/uv.log; \
); \
install_alone() { with_uv "$$@" || "$${into:-$(BIN)}/python" -m pip --disable-pip-version-check -qq install --progress-bar off "$$@"; }; \
install() { install_alone --constraint constraints.txt "$$@"; }
endef

# ffcv, with which the tests read our .beton files, is compiled from source against these; of the project one module is
# (data_prep/images/build_jpeg_crop.py), against libjpeg-dev.
SYSTEM_PACKAGES := build-essential pkg-config libopencv-dev libturbojpeg0-dev libjpeg-dev

# Tests wait for servers and processes for a quarter of their time or more: four at once, on two cores too.
TEST_WORKERS := 4

.PHONY: help setup k8s demo test test-slow test-services test-standin bench benchmarks bench-gpu bench-data bench-checkpoint bench-restart bench-scale bench-start chaos simulate save-faults fuzz identity shape first-hours lint format clean

help:
	@echo "make demo       prepare data, train over two Ray nodes on this machine, register, predict (KEEP=1: leave the cluster up)"
	@echo "make test       linters, type checker, import rules, fast tests"
	@echo "make test-slow  the tests that take minutes, those with servers included"
	@echo "make test-services  MLflow on PostgreSQL and S3, with log-in, TLS and a private authority: real servers, started and killed"
	@echo "make test-standin  rendered jobs on a stand-in for Kubernetes: pods in namespaces, lost, killed, suspended (Linux, root, nftables)"
	@echo "make chaos      a run on two Ray nodes under random faults, and the proof that nothing is lost (FAULTS=20 SEED=7 ELASTIC=1)"
	@echo "make simulate   the supervisor over simulated clusters of up to 1,000 nodes: faults survived, goodput (SEEDS=50; AGAIN=7: one, told)"
	@echo "make fuzz       damaged files of every format that we read: no traceback, no hang, nothing wrong (FILES=20000 SEED=7)"
	@echo "make bench      training speed on this machine, beside the authors' code and the cores' matrix rate"
	@echo "make benchmarks the benchmarks one after the other, into docs/benchmarks.md (ARGS='--only start --images FOLDER')"
	@echo "make bench-gpu  one GPU, 9 minutes: is it right, step against the authors' code and the roofline, whole run, save (ARGS='--cifar10 FOLDER')"
	@echo "make bench-data preparing and reading data beside tar, torchvision, webdataset and FFCV (IMAGES=folder)"
	@echo "make bench-checkpoint  what a save costs, beside torch.save and Ray Train"
	@echo "make bench-start  ray job submit to first step, beside a plain Ray Train script"
	@echo "make bench-restart  kill to next step beside Ray Train; what heartbeat, ledger and goodput cost a step"
	@echo "make bench-scale  what the driver and rank 0 do with up to 4,096 workers and a million steps, on made-up inputs"
	@echo "make save-faults  each operation of a save fails once, and a superseded writer wakes up before each"
	@echo "make identity   shards, checkpoints, ledger, journal and losses of a short run as SHA-256 sums (ARGS='--compare FILE')"
	@echo "make first-hours  three first hours by the documentation's commands alone, with the seconds of each (ARGS='--only 1')"
	@echo "make shape      the tree in figures: files, folders, importers, names, and the walk of a run"
	@echo "make k8s        render the files in k8s/ that convmlp k8s render has written"
	@echo "make lint       linters, type checker, import rules"
	@echo "make format     rewrite the code in the project's format"
	@echo "make setup      only the environment (.venv)"
	@echo "make clean      remove .venv, caches and the demo's output"

# The system's libraries first: the project is compiled against one.
setup: $(DONE)/system $(DONE)/ffcv $(DONE)/kubectl $(DONE)/checkov

demo: $(DONE)/project
	@$(BIN)/convmlp demo $(if $(KEEP),--keep)

test: lint
	@$(BIN)/python -m pytest -m "not slow" --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: setup
	@$(BIN)/python -m pytest -m "not slow and hypothesis" --hypothesis-profile thorough
	@$(BIN)/python -m pytest -m slow

test-services: setup
	@$(BIN)/python -m pytest -m services

test-standin: setup
	@$(BIN)/python -m pytest -m standin -s

bench: setup
	@$(BIN)/python tests/bench/bench_training.py

benchmarks: setup
	@$(BIN)/python tests/bench/benchmarks.py $(ARGS)

bench-gpu: $(DONE)/project
	@$(BIN)/python tests/bench/bench_gpu.py $(ARGS)

bench-data: setup
	@test -n "$(IMAGES)" || { echo "Name a folder of JPEGs, one sub-folder a class: make bench-data IMAGES=folder"; exit 2; }
	@$(BIN)/python tests/bench/bench_data.py $(IMAGES)

bench-checkpoint: setup
	@$(BIN)/python tests/bench/bench_checkpoint.py

bench-start: setup
	@$(BIN)/python tests/bench/bench_start.py

bench-restart: setup
	@$(BIN)/python tests/bench/bench_restart.py
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/bench_overhead.py

bench-scale: setup
	@OMP_NUM_THREADS=1 $(BIN)/python tests/bench/bench_scale.py

chaos: setup
	@$(BIN)/python tests/chaos/run_chaos.py --faults $(or $(FAULTS),20) --seed $(or $(SEED),7) $(if $(ELASTIC),--elastic) $(if $(OUT),--out $(OUT))

simulate: setup
	@PYTHONPATH=.:platform $(BIN)/python tests/simulation/run_simulation.py --seeds $(or $(SEEDS),50) $(if $(AGAIN),--again $(AGAIN))

fuzz: setup
	@$(BIN)/python tests/fuzz/run_fuzz.py --files $(or $(FILES),20000) --seed $(or $(SEED),7)

save-faults: setup
	@$(BIN)/python -m pytest -m slow -s tests/convmlp_platform/checkpoints/test_fault_matrix.py tests/convmlp_platform/checkpoints/test_checkpoint_storage.py

identity: setup
	@$(BIN)/python tests/bench/identity.py $(ARGS)

shape: setup
	@$(BIN)/python tests/bench/shape.py $(ARGS)

first-hours: setup
	@$(BIN)/python tests/walks/first_hours.py $(ARGS)

k8s: setup
	@PYTHONPATH=.:platform $(BIN)/python tests/k8s/rendered_files.py

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# --- the environment, in the order that works: torch, what builds against it, the project, then ffcv --------

$(DONE)/venv:
	@python=""; \
	for candidate in $${PYTHON:-python3.11 python3.12 python3.13 python3}; do \
		if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
			python=$$candidate; break; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "No Python 3.11, 3.12 or 3.13 found (looked for $${PYTHON:-python3.11, python3.12, python3.13, python3})."; \
		echo "Install one, e.g.: sudo apt-get install -y python3 python3-venv python3-dev; or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; \
		exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$$python can't make virtual environments. On Debian and Ubuntu: sudo apt-get install -y python3-venv"; \
		exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV)
	@command -v uv >/dev/null || $(PIP) install --progress-bar off uv || echo "Without uv, which can't be installed: pip takes its place"
	@mkdir -p $(DONE) && touch $@

$(DONE)/torch: constraints.txt | $(DONE)/venv
	@echo "Installing PyTorch: 5 GB, this once"
	@$(INSTALLER); install torch torchvision setuptools wheel
	@touch $@

$(DONE)/project: constraints.txt pyproject.toml data_prep/images/build_jpeg_crop.py data_prep/images/jpeg_crop.c | $(DONE)/torch
	@echo "Installing Ray, DeepSpeed, Accelerate and MLflow: 2 GB, this once"
	@$(INSTALLER); export DS_BUILD_OPS=0; install deepspeed; install --editable .
	@touch $@

$(DONE)/dev: constraints.txt pyproject.toml | $(DONE)/project
	@echo "Installing what the tests and linters need"
	@$(INSTALLER); install --editable '.[dev]'
	@touch $@

$(DONE)/system: | $(DONE)/venv
	@missing=""; \
	if ! { command -v c++ && command -v pkg-config && pkg-config --exists opencv4 libturbojpeg libjpeg; } >/dev/null 2>&1; then \
		missing="$(SYSTEM_PACKAGES)"; \
	fi; \
	if ! $(BIN)/python -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))'; then \
		missing="$$missing python3-dev"; \
	fi; \
	if [ -n "$$missing" ] && command -v apt-get >/dev/null; then \
		sudo=""; \
		[ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
		if [ -z "$$sudo" ] || $$sudo true 2>/dev/null; then \
			echo "Installing system libraries:$$missing"; \
			$$sudo env DEBIAN_FRONTEND=noninteractive apt-get update -qq >/dev/null || true; \
			for package in $$missing; do \
				$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$package >/dev/null \
					|| echo "  $$package can't be installed; going on without it"; \
			done; \
		else \
			echo "Some system libraries are missing. With them, the ffcv tests run too, and photographs are read faster:"; \
			echo "  sudo apt-get install -y $$missing"; \
		fi; \
	elif [ -n "$$missing" ]; then \
		echo "Missing for ffcv (Debian's names):$$missing"; \
	fi
	@touch $@

# Debian's own is too old to render k8s/.
$(DONE)/kubectl: $(DONE)/dev
	@$(BIN)/python tests/k8s/fetch_kubectl.py $(BIN) || echo "  the tests that render k8s/ skip without a kubectl of 1.21 or newer"
	@touch $@

# It pins what others of our packages pin otherwise.
$(DONE)/checkov: $(DONE)/dev
	@echo "Installing checkov, which checks k8s/, beside it"
	@$(BIN)/python -m venv $(VENV)/checkov && { $(INSTALLER); into=$(VENV)/checkov/bin install_alone checkov==3.3.30; } || { \
		rm -rf $(VENV)/checkov; echo "  checkov can't be installed: its test skips"; }
	@touch $@

$(DONE)/ffcv: $(DONE)/dev $(DONE)/system
	@echo "Installing ffcv, compiled here"
	@$(INSTALLER); log=$$(install ffcv 2>&1) || { \
		echo "ffcv can't be built; all works without it but reading .beton files with its own Loader. What the compiler said last:"; \
		echo "$$log" | grep -iE 'error|not found' | tail -5 || true; \
		echo "To try again: sudo apt-get install -y $(SYSTEM_PACKAGES); rm -f $(DONE)/ffcv; make setup"; \
	}
	@touch $@
