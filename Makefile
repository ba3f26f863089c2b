# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
SHELL := /bin/bash

.PHONY: bench-handover skips test-openpi test-lerobot bench-convert torture faults bench-store bench-agent setup demo reacher test check clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.cfg constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip >&2   # the resolver of Python 3.10's own pip does not come to an end
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
	$(BIN)/python -m tests.halves

# Every disturbance through the generated workflow with the reference trainer, twenty segments, a minute without staging: half an hour.
faults: $(STAMP)
	$(BIN)/python -m pytest -v tests/agent/proof_faults.py tests/agent/proof_moved_store.py

bench-agent: $(STAMP)
	@$(BIN)/python bench/bench_agent.py

bench-handover: $(STAMP)
	@$(BIN)/python bench/bench_handover.py

skips: $(STAMP)   # a run of 200 segments of which 190 are skipped
	SEGUE_SKIPS=200 $(BIN)/python -m pytest -s tests/pool/test_skips.py

torture: $(STAMP)
	@$(BIN)/python -m tests.store.torture --seeds 100000

bench-store: $(STAMP)
	@$(BIN)/python bench/bench_store.py

bench-convert: $(STAMP)
	@$(BIN)/python -m bench.bench_convert

# The real trainers, in environments of their own (docs/recipes.md). Skipped, with the reason, where no checkout is given:
#   make test-openpi OPENPI_DIR=<checkout of commit 15a9616> [OPENPI_PYTHON=…] [LEROBOT_DIR=<checkout of the commit that OpenPI pins>]
#   make test-lerobot [LEROBOT_PYTHON=…]
PYTHON311 ?= python3.11
OPENPI_PYTHON ?= $(wildcard $(OPENPI_DIR)/.venv/bin/python)
OPENPI_ENV := $(if $(OPENPI_PYTHON),,$(if $(OPENPI_DIR),.work/openpi-venv))
LEROBOT_ENV := $(if $(LEROBOT_PYTHON),,.work/lerobot-venv)

test-openpi: export OPENPI_DIR := $(OPENPI_DIR)
test-openpi: export OPENPI_PYTHON := $(or $(OPENPI_PYTHON),$(OPENPI_ENV:%=$(CURDIR)/%/bin/python))
test-openpi: $(STAMP) $(OPENPI_ENV:%=%/.ready)
	$(BIN)/python -m pytest -s tests/real/test_openpi.py

test-lerobot: export LEROBOT_PYTHON := $(or $(LEROBOT_PYTHON),$(LEROBOT_ENV:%=$(CURDIR)/%/bin/python))
test-lerobot: $(STAMP) $(LEROBOT_ENV:%=%/.ready)
	$(BIN)/python -m pytest -s tests/real/test_lerobot.py

.work/openpi-venv/.ready:
	$(PYTHON311) tests/real/setup_openpi.py --openpi $(OPENPI_DIR) --venv $(@D) $(if $(LEROBOT_DIR),--lerobot $(LEROBOT_DIR))
	@touch $@

.work/lerobot-venv/.ready:
	$(PYTHON311) tests/real/setup_lerobot.py --venv $(@D)
	@touch $@

clean:
	rm -rf $(VENV) .work build dist *.egg-info
