# Everything a checkout can do. `make` alone prints this list.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
# `deepspeed` is looked up on PATH, and so is `ninja` where one of its ops is built.
export PATH := $(BIN):$(PATH)

# The stamp's name changes with what is to be installed, and from where, so an environment that is up to date costs nothing.
INSTALLS := $(shell { pwd; cat pyproject.toml constraints.txt; } | sha256sum | cut -c1-16)
STAMP := $(VENV)/.braid-$(INSTALLS)
PEERS := tests/peers/requirements.txt
OLD_HF := tests/export/requirements-4.57.txt
OLD_HF_STAMP := $(VENV)/hf-4.57/.braid-$(shell sha256sum $(OLD_HF) | cut -c1-16)
KERNELS := tests/kernels/requirements.txt
KERNELS_STAMP := $(VENV)/kernels/.braid-$(shell sha256sum $(KERNELS) | cut -c1-16)
PEERS_STAMP := $(VENV)/peers/.braid-$(shell sha256sum $(PEERS) | cut -c1-16)

# ENV_READY=1 takes the environment as it is and installs nothing.
ENV_READY ?=

PYTEST := $(BIN)/python -m pytest -q
# Test processes share few cores: one thread each.
one_thread := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# $(call check,heading,command): a heading, the command, and the seconds it took; stops at the first that fails.
define check
@printf '\n==== %s\n' "$(1)"; start=$$(date +%s); code=0; ( $(2) ) || code=$$?; \
printf -- '---- %s: %d s%s\n' "$(1)" $$(( $$(date +%s) - start )) "$$( ((code)) && echo ' FAILED' || true )"; exit $$code
endef

# Checks go from cheap to dear and share few cores, also under `make -j`.
.NOTPARALLEL:
.PHONY: help env peers kernels test-kernels gpu-paper test-gpu demo test test-all lint test-fast test-processes test-speed test-slurm test-hf-matrix chaos bench-data format check-cuda-constraints clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 32

env: $(if $(ENV_READY),,$(STAMP)) ## the virtual environment (VENV=.venv, PYTHON=python3), only when something changed

$(STAMP):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python {v.major}.{v.minor} is too old - Braid needs 3.11 or newer; name one with PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call check,install packages (constraints.txt),$(BIN)/python -m pip install --disable-pip-version-check $(if $(MAKE_TERMOUT),,-q) -c constraints.txt -e '.[hf$(comma)dev]')
	@rm -f $(VENV)/.braid-*; touch $@
comma := ,

peers: env $(if $(ENV_READY),,$(PEERS_STAMP)) ## other projects' layers, which tests compare ours with; apart from the environment (VENV/peers)

# Python only, no CUDA. The folder is made anew: pip does not replace in a --target.
$(PEERS_STAMP):
	@rm -rf $(VENV)/peers
	$(call check,install packages ($(PEERS)),MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(BIN)/python -m pip install --disable-pip-version-check $(if $(MAKE_TERMOUT),,-q) --no-deps --no-build-isolation --target $(VENV)/peers -r $(PEERS))
	@touch $@

kernels: env $(if $(ENV_READY),,$(KERNELS_STAMP)) ## kernel packages without their CUDA, for `make test-kernels`; apart from the environment (VENV/kernels)

$(KERNELS_STAMP):
	@rm -rf $(VENV)/kernels
	$(call check,install packages ($(KERNELS)),$(foreach p,MAMBA CAUSAL_CONV1D FLASH_ATTENTION,$(p)_SKIP_CUDA_BUILD=TRUE $(p)_FORCE_BUILD=TRUE) $(BIN)/python -m pip install --disable-pip-version-check $(if $(MAKE_TERMOUT),,-q) --no-deps --no-build-isolation --target $(VENV)/kernels -r $(KERNELS))
	@touch $@

# One process: importing the packages takes longer than most tests. Warnings are theirs.
test-kernels: kernels ## the kernels behind the ops, run on a CPU in Triton's interpreter; WRITE=1 writes the table of docs/kernels.md
	$(call check,pytest: kernels in the interpreter,$(one_thread) TRITON_INTERPRET=1 WRITE=$(WRITE) PYTHONPATH=$(abspath $(VENV))/kernels $(PYTEST) -W ignore tests/kernels)

# Packages look at the device when they are imported, so each architecture has a process.
gpu-paper: kernels ## what a GPU would run, without one: kernels compiled for sm_80 and sm_90, steps without values (WRITE=1 writes tables)
	$(call check,pytest: sm_90; steps; graphs,$(one_thread) GPU_PAPER=90 WRITE=$(WRITE) PYTHONPATH=$(abspath $(VENV))/kernels $(PYTEST) -W ignore tests/paper)
	$(call check,pytest: sm_80,$(one_thread) GPU_PAPER=80 WRITE=$(WRITE) PYTHONPATH=$(abspath $(VENV))/kernels $(PYTEST) -W ignore tests/paper/test_cubins.py)

test-gpu: env ## what needs a GPU: kernels beside the definitions, a captured step; then layers and braids timed (docs/kernels.md)
	$(call check,pytest: gpu,$(PYTEST) -W ignore -n 4 --tb=short -m gpu tests/ops/test_gpu.py tests/model/test_decode.py)
	$(call check,speed on a GPU,$(BIN)/python -W ignore benchmarks/gpu.py --check)

demo: env ## from text on this machine to a trained, evaluated, exported model (10 minutes on 2 cores)
	@$(BIN)/python launch/demo.py

test: env lint test-fast test-processes test-speed ## every check that CI runs, cheap ones first

lint: env ## ruff, mypy, import contracts
	$(call check,ruff check,$(BIN)/ruff check .)
	$(call check,ruff format,$(BIN)/ruff format --check .)
	$(call check,mypy,$(BIN)/mypy)
	$(call check,import contracts,$(BIN)/lint-imports)

test-fast: peers ## tests that run in one process each, two at a time
	$(call check,pytest: single process,$(one_thread) $(PYTEST) -n 2 -m 'not multirank and not slow')

test-processes: env ## tests that start ranks, commands and environments of their own, one after the other
	$(call check,pytest: ranks and commands,$(one_thread) $(PYTEST) -m 'multirank and not slow')

test-speed: peers ## the mixers' cores beside other projects', at 70 % of what the whole benchmark asks for
	$(call check,speed,$(BIN)/python -W ignore benchmarks/mixers.py --check 0.7 --tables core --tokens 2048 --dtypes fp32 --rounds 3 --threads 1)

# Installed by hand: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge openssh-server pdsh
test-slurm: env ## every job that SLURM can disturb, on a cluster of two nodes on this machine (docs/cluster.md)
	$(call check,pytest: SLURM,$(one_thread) $(PYTEST) tests/slurm --durations=0)

# What an export is loaded by: in a process that has that transformers alone, and in tests that run on it as a whole.
test-hf-matrix: peers $(if $(ENV_READY),,$(OLD_HF_STAMP)) ## exports and imports on transformers 4.57 and 5
	$(call check,transformers 4.57: logits of every export,$(one_thread) HF_SITE=$(abspath $(VENV))/hf-4.57 $(PYTEST) -s tests/export/test_parity.py)
	$(call check,transformers 4.57: what users do,$(one_thread) PYTHONPATH=$(abspath $(VENV))/hf-4.57 $(PYTEST) -W ignore tests/export/test_interface.py tests/export/test_native.py)
	$(call check,transformers 4.57: speed of Mamba-2 beside its layer,PYTHONPATH=$(abspath $(VENV))/hf-4.57 $(BIN)/python -W ignore benchmarks/mixers.py --check 1.0 --threads 1 --only mamba2 --tables layer --tokens 512 --dtypes fp32)
	$(call check,transformers 5: logits of every export,$(one_thread) $(PYTEST) tests/export/test_parity.py)

$(OLD_HF_STAMP):
	@rm -rf $(VENV)/hf-4.57
	$(call check,install packages ($(OLD_HF)),$(BIN)/python -m pip install --disable-pip-version-check $(if $(MAKE_TERMOUT),,-q) --no-deps --target $(VENV)/hf-4.57 -r $(OLD_HF))
	@touch $@

SEED ?= 1
chaos: env ## a run that is killed, stopped, stalled and starved in every place ends as an undisturbed one (SEED=1, tens of minutes)
	$(call check,chaos,$(one_thread) BRAID_CHAOS_SEED=$(SEED) $(PYTEST) -s tests/train/chaos)

bench-data: peers ## the data layer beside other projects': reading, tokenising, near duplicates; fails below its floors
	$(call check,bench: reading,$(one_thread) $(BIN)/python -W ignore benchmarks/data.py --check 1.0)
	$(call check,bench: tokenising,$(one_thread) $(BIN)/python -W ignore benchmarks/data_tokenizing.py --check 1.0)
	$(call check,bench: near duplicates,$(one_thread) $(BIN)/python -W ignore benchmarks/dedup.py --check 1.0)

test-all: test ## adds the long tiers
	$(call check,pytest: long tier,$(one_thread) $(PYTEST) -m slow)
	$(call check,speed: the whole table,$(BIN)/python -W ignore benchmarks/mixers.py --check 1.0)
	$(call check,speed: peak memory,$(BIN)/python -W ignore benchmarks/mixers.py --memory)
	$(MAKE) bench-data
	$(MAKE) test-hf-matrix
	$(MAKE) test-kernels
	$(MAKE) gpu-paper
	$(MAKE) check-cuda-constraints

format: env ## format and mend what ruff can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

check-cuda-constraints: ## does constraints-cuda.txt resolve for linux and Python 3.11? (network, nothing is installed)
	$(call check,constraints-cuda.txt resolves,slurm/check_cuda_constraints.sh)

clean: ## remove the environment and caches; runs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
