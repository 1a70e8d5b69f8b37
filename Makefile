# Everything runs in .venv; the first target that needs it builds it.
PYTHON ?= python3
TORCH_ARGS ?=
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test lint types web kernel contracts picture bench docs clean services build run
.DEFAULT_GOAL := help

help:
	@echo "make demo     train on digits with four local nodes (KEEP=1: leave the coordinator running)"
	@echo "make test     all tests (ARGS='tests/unit -k fedavg': some of them)"
	@echo "make install  only build .venv (TORCH_ARGS='--index-url ...': another build of torch)"
	@echo "make run      a coordinator and PEERS=3 peers for uploaded tables (ARGS='--broker amqp://...': for tutti up)"
	@echo "make services  start PostgreSQL, RabbitMQ and an S3 store for tests, where none answers (Debian)"
	@echo "make web      build the dashboard into the package (needs Node 20 or newer)"
	@echo "make lint | types | contracts | picture | bench | docs | clean"

install: $(STAMP)

# uv installs everything but torch, whose wheels come from whichever index pip is set up for.
$(STAMP): pyproject.toml constraints.txt $(wildcard src/tutti/core/*.c src/tutti/core/*/*.c src/tutti/sim/engines/*.[ch])
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tutti needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[data,dask,ray,audit,chain,otel,redis,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(TORCH_ARGS) torch==2.13.0
	@touch $@

build: $(STAMP)

run: $(STAMP)
	@deploy/run.sh $(ARGS)

services:
	@deploy/services.sh

demo: $(STAMP)
	@$(BIN)/tutti demo $(if $(KEEP),--keep)

test: $(STAMP)
	@$(BIN)/pytest --numprocesses auto --dist loadgroup $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache

types: $(STAMP)
	$(BIN)/mypy

include web/build.mk # web, kernel, contracts, picture: for who changes what is committed as built

bench: $(STAMP)
	@for file in bench/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

docs: $(STAMP)
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv build dist src/*.egg-info tutti-data */node_modules
