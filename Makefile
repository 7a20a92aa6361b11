# `make` lists the targets.
SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
E     ?= local
WORKERS ?= 3  # on two cores: the tests of stacks use half a core each, the others a whole one

.DEFAULT_GOAL := help
.PHONY: help up down status check quick test test-cli cli lint format bench prove build catalogue record-release lock clean runtime-environment dev-environment

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

runtime-environment:
	@scripts/venv.sh $(VENV) requirements/runtime.txt

dev-environment:
	@scripts/venv.sh $(VENV) requirements/dev.txt

up: runtime-environment  ## Bring the local stack up; running it again changes nothing
	@$(BIN)/observatory up --environment $(E) --yes

down: runtime-environment  ## Stop and remove the local stack (KEEP=1 keeps the data)
	@$(BIN)/observatory down --environment $(E) --yes $(if $(KEEP),--keep-data)

status: runtime-environment  ## Show daemons, jobs, fleets and passwords
	@$(BIN)/observatory status --environment $(E)

VERSION ?= v$(shell sed -n 's/^__version__ = "\([^"]*\)".*/\1/p' observatory/__init__.py)
build: runtime-environment  ## Build and sign one release of the storage service: make build VERSION=v0.3.0
	@$(BIN)/python -m service.build --version $(VERSION) --output dist
	@$(BIN)/observatory release sign dist/storage-service-$(VERSION)-$(shell uname -m).tar.gz

# Also where the environment forbids bytecode: otherwise each command of a test compiles the program again.
# A deployment lowers its priority to 10: from 0 it would get a tenth of what the other workers get, and wait for them.
PYTEST := PYTHONDONTWRITEBYTECODE= nice -n 9 $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
check: dev-environment  ## Lint, and run the quick tests, which need no stack
	@$(MAKE) --no-print-directory --jobs 2 lint quick  # at once: mypy uses one core only

quick: dev-environment
	@$(PYTEST) -m "not cli and not slow" --ignore tests/stack

test: dev-environment  ## Run every test that needs no Pulumi CLI
	@$(PYTEST) -m "not cli"

test-cli: dev-environment cli  ## Build the Pulumi CLI and run the tests that need it
	@$(PYTEST) -m cli

cli:  ## Build the Pulumi CLI for the tests, into .observatory/bin (needs Go)
	@scripts/pulumi-cli.sh .observatory/bin/pulumi

lint: dev-environment  ## Check formatting, style, types, import direction and migrations
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m observatory.database.lint migrations

format: dev-environment  ## Format the sources
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: dev-environment  ## Measure and write docs/benchmarks.md
	@$(BIN)/python -m benchmarks

catalogue: dev-environment  ## Record what each migration creates; deployments are verified against it
	@PYTHONPATH=. $(BIN)/python scripts/catalogue.py

record-release: dev-environment  ## Record what this release leaves on a machine, for the upgrade tests
	@PYTHONPATH=. $(BIN)/python scripts/record_release.py

prove: dev-environment  ## Count fault rounds and write docs/proofs.json (PROOF=crash ROUNDS=1 SHARE=1 RESUME=1)
	@$(BIN)/python -m proofs $(PROOF) --rounds $(or $(ROUNDS),1) --share $(or $(SHARE),1) $(if $(RESUME),--resume)

lock: dev-environment  ## Resolve the requirements again, with hashes
	@$(BIN)/python scripts/lock.py

clean: down  ## Remove the stack, the releases and the virtual environment
	@rm -rf .observatory $(VENV) dist
