# `make demo` and `make test` do all the set-up they need; see tools/env.sh.
# Variables: PYTHON (the interpreter .venv is made with), MMCV (full: compile mmcv's operators), ARGS
# (passed on to the tool or pytest), COVERAGE (not empty: measure it).
PYTHON ?= python3
MMCV ?=
COVERAGE ?=
ARGS ?=
VENV_PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help env demo table-demo test lint docs

help:
	@echo "make demo         on generated data: train a teacher and students (alone, FitNet, PAT), compare, export, time"
	@echo "make table-demo   train with all methods and two seeds; ends with a table"
	@echo "make test         lint and tests          (ARGS='-k losses' picks tests, ARGS='-m full' takes the long ones)"
	@echo "                                          (COVERAGE=1 measures coverage; less than 90 % fails)"
	@echo "make lint         ruff (check and format) and mypy"
	@echo "make docs         the documentation, in build/docs (Python 3.11 or newer)"
	@echo "make env          set up .venv only       (PYTHON=python3.11 picks the interpreter,"
	@echo "                                           MMCV=full compiles mmcv's operators: 5 to 20 minutes)"

env:
	@PYTHON='$(PYTHON)' MMCV='$(MMCV)' bash tools/env.sh

demo: env
	$(VENV_PYTHON) tools/demo.py $(ARGS)

table-demo: env
	$(VENV_PYTHON) tools/reproduce.py --table digits --seeds 0 1 --jobs 2 $(ARGS); code=$$?; \
	$(VENV_PYTHON) tools/reproduce.py --table digits --collect $(ARGS) && exit $$code

test: lint
	$(VENV_PYTHON) $(if $(COVERAGE),-m coverage run) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)
ifneq ($(COVERAGE),)
	$(VENV_PYTHON) -m coverage combine --quiet
	$(VENV_PYTHON) -m coverage report
endif

lint: env
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

docs: env
	$(VENV_PYTHON) -m pip install --quiet --quiet --no-deps -r docs/requirements.txt
	$(VENV_PYTHON) -m sphinx -W --keep-going --quiet docs build/docs $(ARGS)
	@echo "build/docs/index.html"
