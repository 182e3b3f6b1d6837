# `make` lists the targets. Everything is installed into .venv, nothing elsewhere.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install
ADAPTERS := .venv-adapters
CHIPS := h100 v5e

.DELETE_ON_ERROR:
.PHONY: help test test-long test-adapters test-page demo lint format table benchmarks accelerators clean

help: ## list the targets
	@echo "usage: make TARGET [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: lint ## install, lint, check the types, run the tests
	@echo "==> tests"
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal --durations=15

test-long: $(VENV)/test.stamp ## run the longest tests, which `make test` leaves out: kills, signals, many devices, learning
	@echo "==> long tests"
	@$(BIN)/python -m pytest -m long --numprocesses auto --maxprocesses 8 --dist worksteal --durations=15

test-adapters: $(ADAPTERS)/test.stamp ## try gymnax, Craftax, Brax, EnvPool, Procgen, Memory Maze and trackio, in a venv of their own: they hold packages back
	@echo "==> tests of the adapters"
	@$(ADAPTERS)/bin/python -m pytest -rs tests/envs/test_gymnax.py tests/envs/test_craftax.py tests/envs/test_brax.py tests/envs/test_envpool.py tests/envs/test_memory_maze.py tests/envs/test_procgen.py tests/storage/test_trackio.py

test-page: $(VENV)/test.stamp ## try the page of `python -m dreamjax.play` in Chromium, without a screen
	@for program in chromium chromedriver; do command -v $$program >/dev/null || { \
		echo "the page is tried in Chromium, and there is no $$program; on Debian or Ubuntu, as root:" >&2; \
		echo "    apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver" >&2; exit 1; }; done
	@echo "==> tests of the page"
	@$(BIN)/python -m pytest -m page tests/play tests/test_benchmarks.py

lint: $(VENV)/test.stamp ## ruff and mypy
	@echo "==> ruff, mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/test.stamp ## rewrite the code in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

demo: $(VENV)/experiments.stamp ## evolve a controller inside the dream of a world model, then let it play Doom (ten minutes, on a CPU)
	@echo "==> Doom Take Cover: a controller evolves inside the dream of the world model that this library comes with"
	@$(BIN)/python experiments/doom_dream.py
	@echo "Play in its dream yourself: $(BIN)/python -m dreamjax.play runs/doom_dream/demo-0"

table: $(VENV)/test.stamp ## write what experiments and benchmarks measured into the READMEs
	@$(BIN)/python -m dreamjax.reporting.tables

benchmarks: $(VENV)/test.stamp ## run every benchmark; each writes its rows to benchmarks/results
	@set -e; for script in $(filter-out %/accelerator_programs.py %/play.py,$(wildcard benchmarks/*.py)); do \
		echo "==> $$script"; $(BIN)/python "$$script"; done

accelerators: $(CHIPS:%=.venv-%/benchmark.stamp) ## count what a GPU and a TPU that are not here would do; in venvs of their own (hours)
	@set -e; for chip in $(CHIPS); do \
		echo "==> programs for $$chip"; .venv-$$chip/bin/python benchmarks/accelerator_programs.py $$chip; done

clean: ## remove the venvs, builds and caches; runs/ stays
	rm -rf $(VENV) $(ADAPTERS) $(CHIPS:%=.venv-%) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are younger than pyproject.toml as long as what is installed is what it asks for.
$(VENV)/test.stamp: pyproject.toml | $(BIN)/pip
	@echo "==> installing dreamjax with what its tests need (1 to 3 minutes, about 2 GB)"
	@$(PIP) --editable '.[test]'
	@$(BIN)/python -c 'import dm_control' 2>/dev/null || $(PIP) --no-deps 'dm_control>=1.0.30'  # left out on 3.13
	@touch $@ $(VENV)/experiments.stamp

$(VENV)/experiments.stamp: pyproject.toml | $(BIN)/pip
	@echo "==> installing dreamjax with what its experiments need (about a minute)"
	@$(PIP) --editable '.[experiments,play]'
	@touch $@

$(ADAPTERS)/test.stamp: pyproject.toml | $(ADAPTERS)/bin/pip
	@echo "==> installing dreamjax with gymnax, Craftax, Brax, EnvPool, Procgen and Memory Maze (1 to 3 minutes, about 3 GB)"
	@$(ADAPTERS)/bin/python -m pip --disable-pip-version-check install --editable '.[adapters]'
	@$(ADAPTERS)/bin/python -c 'import procgen_gym' 2>/dev/null || $(ADAPTERS)/bin/python -m pip --disable-pip-version-check install --no-deps gym3 procgen-mirror  # before 3.13
	@touch $@

$(CHIPS:%=.venv-%/benchmark.stamp): .venv-%/benchmark.stamp: pyproject.toml | .venv-%/bin/pip
	@echo "==> installing dreamjax with the compiler for $* (a few minutes, 6 GB for h100, 2 GB for v5e)"
	@.venv-$*/bin/python -m pip --disable-pip-version-check install --editable '.[accelerator-$*]'
	@touch $@

$(BIN)/pip $(ADAPTERS)/bin/pip $(CHIPS:%=.venv-%/bin/pip):
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) was not found; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "dreamjax needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is $$("$(PYTHON)" --version 2>&1);" >&2; \
		echo "name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "==> creating $(@:/bin/pip=) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(@:/bin/pip=)
