# axiond: `make run` serves a small model, `make test` proves the rest. `make` lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL: # the kernels are compiled with what the locks install

VENV ?= .venv
BIN := $(VENV)/bin
LOCKS := requirements/run.lock requirements/dev.lock
QUICK_TESTS := tests/unit tests/component

# A stamp is named by what it stands for, so that a changed lock installs again and an unchanged one costs nothing.
digest = $(shell cat $(1) pyproject.toml requirements/install.sh | sha256sum | cut -c1-12)
RUN_STAMP := $(VENV)/.run-$(call digest,requirements/run.lock)
DEV_STAMP := $(VENV)/.dev-$(call digest,$(LOCKS))
NATIVE_STAMP := $(VENV)/.native-$(shell find native pyproject.toml axiond/__init__.py -type f | sort | xargs sha256sum | sha256sum | cut -c1-12)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: $(RUN_STAMP) $(NATIVE_STAMP) ## install, fetch SmolLM2-135M-Instruct and serve it on 127.0.0.1:8080
	@exec $(BIN)/axiond serve etc/axiond/quickstart.toml

.PHONY: venv
venv: $(DEV_STAMP) $(NATIVE_STAMP) ## make .venv with everything for working on axiond

.PHONY: test
test: venv ## all tests: unit, component, process, and real vLLM engines (about half an hour)
	$(BIN)/pytest

.PHONY: test-unit
test-unit: venv ## the tests that need neither engines nor child processes
	$(BIN)/pytest $(QUICK_TESTS)

.PHONY: lint
lint: venv ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: lock
lock: venv ## write requirements/*.lock from what .venv has installed
	$(BIN)/python requirements/lock.py

.PHONY: clean
clean: ## remove .venv, fetched models and caches
	rm -rf $(VENV) var build dist .*_cache .import_linter_cache .hypothesis *.egg-info
	find axiond tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN_STAMP):
	@requirements/install.sh $(VENV) requirements/run.lock
	@rm -f $(VENV)/.run-* && touch $@

$(DEV_STAMP):
	@requirements/install.sh $(VENV) $(LOCKS)
	@rm -f $(VENV)/.run-* $(VENV)/.dev-* && touch $@ $(RUN_STAMP)

$(NATIVE_STAMP):
	@echo "Compiling the kernels"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.native-* && touch $@

-include systemd/*.mk native/*.mk tests/arm/*.mk
