# make demo | studio | test | lint | check | docs | lock | clean
#
# Everything happens in .venv with the versions in constraints.txt. Variables: PYTHON (a Python 3.11 or newer),
# VENV, TORCH_SPEC (what pip is asked for, such as torch==2.13.0+cpu), OUT (of the demo), PYTEST_ARGS.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
DEMO := out/demo
OUT ?= $(DEMO)
PYTEST_ARGS ?= -n 2
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_SPEC ?=

RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip --disable-pip-version-check install --quiet --no-compile -c constraints.txt

.PHONY: help demo studio test lint check docs lock clean

help:
	@echo "make demo    play a four-turn story in two languages on the embedded models"
	echo "make studio  open the studio in the browser"
	echo "make test    run the tests"
	echo "make lint    check style, types and which room imports which"
	echo "make check   lint, then test"
	echo "make docs    build the documentation into site/"
	echo "make lock    resolve the tested versions again (needs uv)"
	echo "make clean   remove what make made"

# A virtual environment with huaben in it. Of torch, the CPU build is tried first: it is a tenth of the size of the
# CUDA build, and pip sees it where an index or a wheel folder that has it is configured. Else pip's own choice is used.
$(VENV)/.huaben: pyproject.toml constraints.txt
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	  echo "error: '$(PYTHON)' is not Python 3.11 or newer" >&2
	  echo "hint: install one and name it: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2
	  exit 1
	fi
	if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then
	  echo "error: '$(PYTHON)' cannot make virtual environments" >&2
	  echo "hint: on Debian and Ubuntu: apt-get install python3-venv" >&2
	  exit 1
	fi
	[ -x $(RUN)/python ] && $(RUN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	if ! $(RUN)/python -c 'import sys, importlib.metadata as m; sys.exit(m.version("torch").split("+")[0] != "$(TORCH_VERSION)")' 2>/dev/null; then
	  echo "installing torch $(TORCH_VERSION)" >&2
	  if [ -n "$(TORCH_SPEC)" ]; then
	    $(PIP) "$(TORCH_SPEC)"
	  else
	    $(PIP) "torch==$(TORCH_VERSION)+cpu" 2>/dev/null || $(PIP) "torch==$(TORCH_VERSION)"
	  fi
	fi
	echo "installing huaben" >&2
	$(PIP) -e .
	touch $@

# The packages of some extras, such as test+hf.
$(VENV)/.huaben-%: $(VENV)/.huaben
	@echo "installing what $* needs" >&2
	$(RUN)/python -c 'import sys, tomllib
	extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
	print(*(package for name in sys.argv[1].split("+") for package in extras[name]), sep="\n")' "$*" > $@.txt
	$(PIP) -r $@.txt
	mv $@.txt $@

# A folder that is not the demo's own is never removed: the story in it goes on.
demo: $(VENV)/.huaben
	@if [ "$(OUT)" = "$(DEMO)" ]; then rm -rf "$(DEMO)"; fi
	$(RUN)/huaben chat --demo --out "$(OUT)"

studio: $(VENV)/.huaben-studio
	@$(RUN)/huaben studio --open

test: $(VENV)/.huaben-test+hf+search+gpu+clip+openai+studio+postgres+ray
	@OMP_NUM_THREADS=1 $(RUN)/python -m pytest $(PYTEST_ARGS)

# What is left out of make test because it takes longer, such as killing a story while it is written.
test-slow: $(VENV)/.huaben-test+hf+search+gpu+clip+openai+studio+postgres+ray
	@OMP_NUM_THREADS=1 $(RUN)/python -m pytest $(PYTEST_ARGS) --slow -m slow

lint: $(VENV)/.huaben-lint+studio+openai
	@$(RUN)/ruff check .
	$(RUN)/ruff format --check --quiet .
	$(RUN)/mypy
	$(RUN)/lint-imports

check: lint test

docs: $(VENV)/.huaben-docs
	@$(RUN)/python docs/words.py
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict

lock:
	@uv lock
	{ echo "# One tested set of versions, used by make and .ci/run. Written by make lock from uv.lock; edit pyproject.toml instead."
	uv export --quiet --all-extras --no-hashes --no-emit-project --no-annotate --no-header; } > constraints.txt

clean:
	@rm -rf $(VENV) site dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
