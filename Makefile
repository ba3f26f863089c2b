# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
SHELL := /bin/bash

.PHONY: bench-convert torture bench-store bench-agent setup demo reacher test check clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.cfg constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pool,train,sim,wandb,convert,serve,test]' >&2
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps openpi-client >&2   # its pins (numpy below 2) are not needed by the websocket client
	@touch $@

demo: $(STAMP)
	@$(BIN)/python examples/reacher/demo.py

reacher: $(STAMP)
	@$(BIN)/python -m examples.reacher_camera.reacher

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest

bench-agent: $(STAMP)
	@$(BIN)/python bench/bench_agent.py

torture: $(STAMP)
	@$(BIN)/python -m tests.store.torture --seeds 100000

bench-store: $(STAMP)
	@$(BIN)/python bench/bench_store.py

bench-convert: $(STAMP)
	@$(BIN)/python -m bench.bench_convert

clean:
	rm -rf $(VENV) .work build dist *.egg-info
