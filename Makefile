# Steploom's commands. Everything runs from .venv, which is made on first use.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Code that is linted and type-checked.
CODE := common gateway batcher engine_worker kernels distill loadtest benchmarks launcher tests tools
# Arguments for `make serve`, `make kernels` and `make bench-peers`, as in: make serve ARGS="--listen 127.0.0.1:9001"
ARGS ?=
# How long `make soak` takes, as in: make soak SOAK_MINUTES=5
SOAK_MINUTES ?= 20

# The root holds folders, as kernels/, that must not be taken for packages of that name.
export PYTHONSAFEPATH := 1
# Quiet libraries, and no look at a model hub: every model is a folder on this machine.
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lint types protos docs bench bench-peers soak kernels serve clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | while IFS=$$'\t' read -r name text; do \
		printf '  make %-11s %s\n' "$$name" "$$text"; done

demo: $(INSTALLED) ## start everything, edit a picture, show where the time went, stop
	@$(BIN)/python -m steploom.demo

test: lint types ## stubs, lint, types and tests: what CI runs
	@$(BIN)/python -m pytest -q

lint: $(INSTALLED) ## generated stubs, ruff check and ruff format
	@$(BIN)/python tools/generate_protos.py --check
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)

types: $(INSTALLED) ## mypy, strict
	@$(BIN)/mypy $(CODE)

protos: $(INSTALLED) ## regenerate the gRPC stubs
	@$(BIN)/python tools/generate_protos.py

docs: $(INSTALLED) ## regenerate docs/configuration.md from the settings
	@$(BIN)/python -m steploom config --format markdown > docs/configuration.md.new && mv docs/configuration.md.new docs/configuration.md

bench: $(INSTALLED) ## measure latency, throughput and the cost of the control plane
	@$(BIN)/python -m steploom_loadtest.bench

bench-peers: $(INSTALLED) ## the same loads on Steploom, Triton, MOSEC, LitServe, BentoML and Ray Serve
	@PYTHONPATH=benchmarks $(BIN)/python -m steploom_benchmarks $(ARGS)

soak: $(INSTALLED) ## mixed load with cancels, lost callers and killed workers for SOAK_MINUTES (20)
	@$(BIN)/python -m steploom_loadtest.soak --minutes $(SOAK_MINUTES)

kernels: $(INSTALLED) ## compile the GPU kernels for every target into out/kernels; needs no GPU
	@$(BIN)/python -m steploom_kernels.aot --out out/kernels $(ARGS)

serve: $(INSTALLED) ## start the services on this machine until Ctrl-C
	@$(BIN)/steploom up $(ARGS)

clean: ## remove caches, builds and the demo's pictures; keeps .venv
	@rm -rf out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is missing: install Python 3.11 or later"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed; name one by: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing; the first time takes some minutes and 2.5 GB or more"
	@$(BIN)/pip install --progress-bar off -c constraints.txt -e ".[dev]" \
		| sed -un 's/^Collecting \([^ ]*\).*/  \1/p; s/^Installing collected.*/  unpacking/p'
	@touch $@
