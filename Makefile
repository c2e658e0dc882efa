# Two commands matter: `make run` and `make test`. Both install what they need into $(VENV).
# `make help` lists them all.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: run test coverage test-cuda test-gguf test-peers fuzz soak check format bench demo lock \
	clean help

run: $(VENV)/.installed  ## migrate the database and serve
	@$(BIN)/gateway db upgrade
	@exec $(BIN)/gateway serve

test: $(VENV)/.installed-dev  ## every test, in two processes: many wait more than they compute
	$(BIN)/pytest --numprocesses 2 --dist loadfile

coverage: $(VENV)/.installed-dev  ## the lines and branches that tests within one process cover
	@$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --ignore=tests/integration/process
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=80

test-gguf: $(VENV)/.installed-gguf  ## the tests of GGUF files, with llama.cpp (compiles it)
	$(BIN)/python -m pytest tests -m gguf

test-peers: $(VENV)/.installed-dev  ## the tests against `transformers serve` and llama-cpp-python (installs them)
	$(BIN)/python -m pytest -m peers --timeout 900 -rs tests/integration/providers

test-cuda: $(VENV)/.installed-dev  ## the tests on a CUDA GPU; they skip where there is none
	$(BIN)/python -m pytest tests -m 'cuda or mps' -rs

fuzz: $(VENV)/.installed-dev  ## longer storms over the engine than those of `make test`
	HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest -m fuzz --timeout 600 tests/integration/engine/test_fuzz.py

soak: $(VENV)/.installed-dev  ## hundreds of kills, a million records purged
	$(BIN)/python -m pytest -m soak --timeout 3600 tests/integration

check: $(VENV)/.installed-dev  ## style, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## style, mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev  ## measure; see bench/README.md
	$(BIN)/python -m bench.upstream
	$(BIN)/python -m bench.gateway
	$(BIN)/python -m bench.bursts
	$(BIN)/python -m bench.engine
	$(BIN)/python -m bench.steps
	$(BIN)/python -m bench.swap
	$(BIN)/python -m bench.rotation
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.library

demo: $(VENV)/.installed  ## train the built-in demo model anew
	OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 $(BIN)/python -m gateway.demo.train

lock: $(VENV)/.installed-gguf  ## write down what is installed
	$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools \
		| sed 's/+cpu$$//' > constraints.txt

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F'|' '{printf "make %-12s %s\n", $$1, $$2}'

clean:  ## remove what was installed and left behind
	rm -rf $(VENV) dist .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache \
		.import_linter_cache tests/integration/clients/node_modules

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/pip pyproject.toml constraints.txt
	@echo "Installing the gateway into $(VENV); the first time takes a minute or two ..."
	$(PIP) --editable '.[fast-cpu]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev,fast-cpu]'
	@touch $@

$(VENV)/.installed-gguf: $(VENV)/.installed-dev
	$(PIP) --editable '.[dev,fast-cpu,gguf]' 'gguf>=0.19'
	@touch $@
