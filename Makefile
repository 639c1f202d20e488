# Everything a stranger types. Needs only make and Python 3.11 to 3.14 with pip; `make help` explains.

PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=
BIN := .venv/bin
# Byte code halves Airflow's start; some machines switch it off for all of Python.
unexport PYTHONDONTWRITEBYTECODE
CODE := $(wildcard include plugins dags tests benchmarks tools)

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-clean test azurite test-all test-celery soak coverage mutants lint format bench requirements clean

help: ## This list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-13s %s\n", $$1, $$2 }'
	@echo
	@echo 'Knobs: make demo DEMO_PORT=9000, for example'
	@echo '  PYTHON=python3.13    the Python that .venv is made of (3.11 to 3.14)'
	@echo '  DEMO_PORT=8080       the port of the demo'"'"'s Airflow (a free one if not set)'
	@echo '  DEMO_EXIT=1          end the demo after its story instead of staying up'
	@echo '  DEMO_MB=130          how big the demo'"'"'s shop is, in MB'
	@echo '  DEMO_FOLDER=/x/demo  where the demo keeps its data (.demo if not set); it is emptied'
	@echo '  JOBS=2               test processes at a time'
	@echo '  PYTEST_ARGS="-k x"   more for pytest'
	@echo '  MUTANTS='"'"'*x_decide*'"'"'  try these mutants again, whatever came of them before'
	@echo '  SOAK_ROUNDS=100      how many histories make soak tries'
	@echo '  SOAK_SEED=1          which is the first of them'
	@echo '  SPANVAULT_FAULTS=all  every place at which a run can break, instead of a sample'
	@echo '  SPANVAULT_TEST_POSTGRES=/x  a folder of other versions of PostgreSQL to test with, each in a folder of its number'
	@echo '  SPANVAULT_TEST_LIVE_AWS_KMS=URI     a key in the cloud itself to test with'
	@echo '  SPANVAULT_TEST_LIVE_GOOGLE_KMS=URI  likewise'
	@echo '  SPANVAULT_TEST_LIVE_AZURE_KMS=URI   likewise'
	@echo '  SPANVAULT_PG_BIN=/usr/lib/postgresql/18/bin   PostgreSQL'"'"'s programs instead of the packaged ones'

setup: ## Make .venv with the spanvault command (first time: some minutes, about 3 GB)
	@$(PYTHON) tools/bootstrap.py

demo: setup ## A PostgreSQL cluster, S3 and Airflow: back up under load, restore, prove it; stays up until Ctrl-C
	@$(BIN)/spanvault demo start

demo-clean: ## Stop whatever a demo left running and delete its data
	@if [ -x $(BIN)/spanvault ]; then $(BIN)/spanvault demo stop; fi
	@rm -rf .demo

test: setup ## Tests that need nothing but what setup installs (at most 8 minutes on 2 cores)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --ignore=tests/soak -m 'not apt and not slow' $(PYTEST_ARGS)

azurite: setup ## Azure's test server, from npm into .tools; test-all runs this, and does without where npm is missing
	@if ! command -v npm >/dev/null; then \
		echo 'npm is not installed: all tests of Azure Blob Storage will be skipped.'; \
	elif ! cmp -s tools/azurite/package-lock.json .tools/azurite/installed; then \
		mkdir -p .tools/azurite && cp tools/azurite/package.json tools/azurite/package-lock.json .tools/azurite/ && \
		npm ci --prefix .tools/azurite --ignore-scripts --omit=optional --no-audit --no-fund --loglevel=error && \
		cp tools/azurite/package-lock.json .tools/azurite/installed || \
		echo 'Azurite could not be installed (the reason stands above): all tests of Azure Blob Storage will be skipped.'; \
	fi

test-all: setup azurite ## All tests; names what it skips because the machine lacks it
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --ignore=tests/soak $(PYTEST_ARGS)

test-celery: setup ## Two Celery workers in two localities, with Valkey, a primary and standbys (a part of test-all)
	$(BIN)/python -m pytest tests/airflow/test_celery.py $(PYTEST_ARGS)

soak: setup ## Random histories against PostgreSQL's own recovery (SOAK_ROUNDS=100, SOAK_SEED=1), millions of changes, every fault
	PYTHONPATH=. $(BIN)/python -m tests.soak
	$(BIN)/python -m pytest tests/soak $(PYTEST_ARGS)
	SPANVAULT_FAULTS=all $(BIN)/python -m pytest -n $(JOBS) tests/kill $(PYTEST_ARGS)

# What decides what is stored, decrypted and restored: nothing of it may be untested.
WHOLLY_COVERED := include/spanvault/collection/*,include/spanvault/crypto/*,include/spanvault/restore/plan.py,include/spanvault/restore/selective.py,include/spanvault/restore/origin.py,include/spanvault/restore/resume.py
coverage: setup azurite ## Branch coverage of the engine by its own tests, against its limits (about half an hour)
	@mkdir -p .cache/coverage && $(BIN)/coverage erase
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --cov --cov-report= \
		--ignore=tests/soak --ignore=tests/demo --ignore=tests/airflow --ignore=tests/docs $(PYTEST_ARGS)
	$(BIN)/coverage report --fail-under=90
	$(BIN)/coverage report --fail-under=100 --include='$(WHOLLY_COVERED)'

# Single mutants to try again, by name (with *); without it those that were not tried since the code changed.
MUTANTS ?=
mutants: setup ## Which single changes to merge and chain logic no quick test notices (1 to 2 hours; goes on where it was stopped)
	@mkdir -p .cache/mutants && rm -rf .cache/mutants/mutants/tests && cd .cache/mutants && \
		ln -sfn ../../include src && ln -sfn ../../tests tests && ln -sfn ../../pyproject.toml pyproject.toml
	@cd .cache/mutants && set -f && PATH="$(CURDIR)/$(BIN):$$PATH" MYPYPATH=src nice mutmut run --max-children $(JOBS) $(MUTANTS)
	@cd .cache/mutants && $(CURDIR)/$(BIN)/mutmut results | grep -vE ': (caught by type check|not checked)$$' || echo 'No mutant survived.'

lint: setup ## Style, types and the order of the rooms
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports

format: setup ## Put the code into the house style
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: setup ## Backup and restore against pg_dump and pg_restore, on the same database in one run
	$(BIN)/python -m benchmarks

requirements: setup ## Resolve requirements.in and requirements-dev.in anew
	.tools/bin/uv pip compile --upgrade --universal --python-version 3.11 --no-header -q requirements.in -o requirements.txt
	.tools/bin/uv pip compile --upgrade --universal --python-version 3.11 --no-header -q requirements-dev.in -c requirements.txt -o requirements-dev.txt

clean: demo-clean ## Delete .venv and everything else that the targets above made
	rm -rf .venv .tools .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage build include/*.egg-info *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@if [ "$$(id -u)" = 0 ]; then rm -rf /var/cache/spanvault; fi
