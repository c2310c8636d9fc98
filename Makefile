# hclab: two commands on a bare machine (git, make, Python 3.11 or newer), from any folder (make -C path demo), as often as you like.
#   make demo   sets up and runs the tour         make test   sets up and runs all that CI runs
# Paths here are relative and quoted, so that the project may lie in a folder with spaces.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test lab site clean setup setup-dev

# The first Python that is new enough. Name another one with: make demo PYTHON=/path/to/python3.12
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
VENV := $(or $(HCLAB_VENV),.venv)
HCLAB = "$(VENV)/bin/hclab"
PORT ?= 8888
# make test hands these to pytest, for instance: make test PYTEST_ARGS="tests/test_setup.py"
PYTEST_ARGS ?= -n 2 --dist loadgroup

help:
	@echo "make demo    set up, then run the tour: pictures and the ledger page, in minutes, on a CPU"
	@echo "make test    set up, then run all tests"
	@echo "make lab     open JupyterLab on the notebooks (PORT=$(PORT))"
	@echo "make site    build the site from the executed notebooks, into _site"
	@echo "make clean   remove .venv, _site and caches; keeps your runs and your data"
	@echo "What a set-up would do here, without doing it: $(or $(PYTHON),python3.11) hclab/lab/setup.py plan"

# Both quick when the environment is as the lock files say.
setup setup-dev:
	@test -n "$(PYTHON)" || { echo "hclab needs Python 3.11 or newer and found none: install it (Debian: sudo apt-get install -y python3.11 python3.11-venv) or name it: make demo PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" hclab/lab/setup.py $(if $(filter setup-dev,$@),test,demo)

demo: setup
	@$(HCLAB) tour

# One BLAS thread a process: two processes share the cores, and small products run faster on one thread.
test: setup-dev
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest $(PYTEST_ARGS)

lab: setup
	@"$(VENV)/bin/python" -m jupyterlab --no-browser --port=$(PORT) --notebook-dir=nbs

site: setup-dev
	@$(HCLAB) site

# Only what can be made again by a command above. An environment that HCLAB_VENV puts elsewhere is left alone.
clean:
	rm -rf .venv _site _build build dist hclab.egg-info .pytest_cache .hypothesis .ruff_cache
	find hclab nbs tests \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +
	@test ! -d runs || echo "kept: runs/ (what you trained); remove it by hand if you do not need it"
