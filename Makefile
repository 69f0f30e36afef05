# Armature. `make` prints this help.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# torch has to stand in the same pip command as everything else, pinned: a bare `torch` brings gigabytes of CUDA.
# With a GPU, pass your own: make setup TORCH="torch==2.13.0 --index-url <your CUDA wheel index>"
TORCH  ?= torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-fast check format clean

help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "; print "Armature\n"} /^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv and install everything the project needs

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH) --editable '.[dev]'
	touch $@

demo: $(STAMP) ## Run the main job end to end on a tiny world (a few minutes on 2 CPU cores)
	$(BIN)/armature demo

up: $(STAMP) ## Start the platform on this machine
	$(BIN)/armature up

test: $(STAMP) ## Run every test
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-fast: $(STAMP) ## Run the tests that start no process and are not slow (about 100 s on 2 cores)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not (server or process or e2e or faults or slow)"

check: $(STAMP) ## Lint, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP) ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment, caches and local data
	rm -rf $(VENV) .armature .mypy_cache .ruff_cache .hypothesis
