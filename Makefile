# screpro: `make book` and `make test` need Python >= 3.11, make and a package registry; nothing else.
PYTHON ?= python3
TIER ?= ci
JOBS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

BIN := .venv/bin
# processes that run side by side must not each start a thread per core
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1

.PHONY: help install book test check lint executed clean
.DEFAULT_GOAL := help

help:  ## this list
	@echo "make TARGET [TIER=ci|laptop|paper] [JOBS=cores] [PYTHON=python3]"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

# The stamp is written last. Without it (first time, or an installation that was cut short) start afresh.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "screpro needs Python >= 3.11; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@if [ -f $@ ]; then rm $@; else $(PYTHON) -m venv --clear .venv; fi
	@echo "installing the pinned environment into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input \
	  -c constraints.txt -e ".[baselines,book,dev,text]"
	@touch $@

install: .venv/.installed  ## create .venv with the pinned environment

book: .venv/.installed  ## execute what changed, render _build/html
	@$(BIN)/screpro book --tier $(TIER) --cores $(JOBS)

test: .venv/.installed  ## run the tests
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist worksteal -rs

check: .venv/.installed  ## compare recorded numbers with their accepted bands
	@$(BIN)/screpro check

lint: .venv/.installed  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

executed: book  ## put the executed notebooks on the local branch "executed" (push it yourself)
	@$(BIN)/python -m screpro.book_branch

clean:  ## remove everything generated, keep .venv
	rm -rf _build .snakemake book/generated .pytest_cache .hypothesis .ruff_cache
	find notebooks -name '*.ipynb' -delete
