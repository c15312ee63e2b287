PYTHON ?= python3
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test versions check mutants chaos bench containment lock clean

run: .venv/.done ## the shop on the in-memory bus
	@$(BIN)/python app.py demo

test: .venv/.done ## every check and every test, on a real RabbitMQ too; BROKER=3.10, 4.0 or 4.3 wants that version
	@BIN=$(BIN) sh scripts/test

versions: .venv/.done ## the contract on every RabbitMQ that can be had, fetched where need be; one line says what came of each
	@$(BIN)/python -m tests.broker.versions

check: .venv/.done ## formatting, lint and types
	@BIN=$(BIN) sh scripts/check

mutants: .venv/.done ## break each guarantee and see its test go red
	@$(BIN)/python -m tests.mutants

MINUTES ?= 10
SEED    ?= 1
chaos: .venv/.done ## kill, cut and block everything for MINUTES by SEED, and see that nothing is lost; ARGS=--cluster: three nodes
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) --seed $(SEED) $(ARGS)

bench: .venv-bench/.done ## this project, raw aio-pika and FastStream in one run, on a private broker
	@.venv-bench/bin/python -m benchmarks

containment: .venv-bench/.done ## two healthy services beside a sick one, fault by fault, with FastStream; about 13 minutes
	@.venv-bench/bin/python -m benchmarks.containment

lock: ## make the lock files anew from pyproject.toml (needs uv)
	uv lock --quiet
	uv export --quiet --frozen --group dev --no-emit-project --no-header --no-annotate -o requirements.lock
	uv export --quiet --frozen --no-default-groups --no-emit-project --no-header --no-annotate -o deploy/requirements.lock
	uv export --quiet --frozen --group bench --no-default-groups --no-emit-project --no-header --no-annotate -o benchmarks/requirements.lock

clean:
	rm -rf .venv .venv-bench tests/languages/node_modules .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/.done: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make run PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip; ensurepip.version()' 2>/dev/null || { echo "This Python cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv"; exit 2; }
	@echo "Setting up .venv (once; under a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation --no-index -e .
	@touch $@

.venv-bench/.done: benchmarks/requirements.lock
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/requirements.lock
	@touch $@
