# Needs python3 (3.11 or newer), pip and make; everything else goes into .venv.
#
#   make demo       install the core, then `trivium quickstart`: raw text to a tuned model and a report
#   make test       the test suite (fast, distributed, crash and, where there is a browser, browser tests)
#   make test-all   the same with the slow tests
#   make lint       ruff: rules and format        make format   let ruff repair both
#   make types      mypy --strict
#   make docs       the documentation site, in site/
#   make bench      all benchmarks, for hours; one of them: make bench W=sft ARGS="--lora" (benchmarks/README.md)
#   make clean      remove .venv, caches and built files (never runs/)
#
# PYTHON=python3.12 chooses another interpreter; PIP_FLAGS=... adds options to every pip install.

PYTHON ?= python3
PIP_FLAGS ?=
PYTEST_FLAGS ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# -qq: only errors. The constraints also hold inside pip's build environments.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --prefer-binary $(PIP_FLAGS)
# One thread for each test process: two processes with two threads each fight over the cores.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

# Without its bytecode cache torch takes twice as long to import.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format types docs bench clean
.DELETE_ON_ERROR:

help:
	@sed -n '3,/^$$/{s/^# \{0,1\}//;p;}' Makefile

demo: $(VENV)/.core
	$(BIN)/trivium quickstart

test: $(VENV)/.test
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_FLAGS)

test-all: $(VENV)/.test
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "" $(PYTEST_FLAGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check --output-format concise
	$(BIN)/ruff format --check

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site is in site/index.html; its search needs a server: python3 -m http.server -d site"

# Without W all of them. The peers live in environments of their own, so that nothing of theirs is imported by the product.
bench: $(VENV)/.core
	$(BIN)/python benchmarks $(if $(W),$(W) $(ARGS),--all)

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find trivium tests benchmarks docs -name __pycache__ -prune -exec rm -rf {} +

# Each stamp is one set of packages; all of them live in the same environment.
$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Trivium into $(VENV) (about a minute, most of it PyTorch) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "Installing what the tests need ..."
	@$(PIP) -e ".[test]"
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	@$(PIP) -e ".[docs]"
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.docs

# Debian splits venv's pip off into python3-venv: without it the system's pip installs pip into an empty environment.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there. Install Python 3.11 or newer (Debian: apt install python3 python3-venv)."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Trivium needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1)."; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	  rm -rf $(VENV); \
	  $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install -qq pip; } || { \
	  rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment. Debian and Ubuntu: apt install python3-venv python3-pip"; exit 1; }
