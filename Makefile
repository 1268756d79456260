# What CI runs is what a person runs. `make` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
# What is never imported need not be compiled: a third of an installation's time.
PIP_INSTALL := $(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt
UV_INSTALL := $(BIN)/uv pip install -q -p $(BIN)/python -c constraints.txt
# Nothing here downloads a model; one thread a process is the fastest on a small busy machine; what
# is imported is compiled once, or each process that a test starts would compile torch anew.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
PYTEST_ARGS ?= -n 3 --dist worksteal

.PHONY: help setup demo test test-all real faults stress check format docs build clean compiled

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: .venv/.stamp  ## create .venv and install errata with its extras; quick when nothing changed

# pip takes torch first, from where its own configuration says, so that nothing else picks a build of
# it; uv takes the rest in an eighth of pip's time, or pip where uv cannot (an index only pip knows).
.venv/.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) torch uv
	$(UV_INSTALL) -e '.[all,dev]' || $(PIP_INSTALL) -e '.[all,dev]'
	touch $@

demo: setup  ## a tour in two minutes: edit a small model, ask it, undo
	$(OFFLINE) $(BIN)/python scripts/demo.py

test: setup  ## the tests, offline, and the ten slowest; PYTEST_ARGS='-k merging' picks some
	$(OFFLINE) $(BIN)/python -m pytest -q --durations=10 $(PYTEST_ARGS)

test-all: setup  ## as test, with those marked grid (all methods on all families) and long (more rounds)
	$(OFFLINE) $(BIN)/python -m pytest -q --durations=10 $(PYTEST_ARGS) -m 'not real and not faults'

real: setup  ## the contract on pretrained models, whose folders lie in ERRATA_MODELS; minutes for each
	$(OFFLINE) $(BIN)/python -m pytest -q --durations=10 $(PYTEST_ARGS) -m real

faults: setup  ## a served model killed at 50 moments, on each database; on a full disk; without one; half an hour
	$(OFFLINE) $(BIN)/python -m pytest -q --durations=10 tests/test_serve_faults.py tests/test_serve_shared.py -m ''

stress: setup  ## minutes of processes, threads, fuzzed lines and hostile folders; nothing may be lost or wrong
	$(OFFLINE) $(BIN)/python scripts/stress.py

check: setup  ## ruff, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Python compiles what it imports first: once here, and not in each of the tests' processes.
compiled: setup
	$(OFFLINE) $(BIN)/python -m pytest -q --collect-only > /dev/null

format: setup  ## let ruff write what `check` asks for
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: setup  ## write the generated tables of README.md and docs/
	$(OFFLINE) $(BIN)/python scripts/docs.py

build: setup  ## a wheel in dist/
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

clean:  ## remove what can be made again, .venv left out
	rm -rf build dist out .mypy_cache .pytest_cache .ruff_cache
