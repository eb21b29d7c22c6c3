# What you can do here; `make` alone prints the list. Everything runs in .venv, which the first command creates.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# The executed notebooks of a published run, in their order.
prints_of = $(sort $(wildcard results/$(1)/*.ipynb))
QUICK := $(wildcard results/demo/00_*.ipynb results/demo/01_*.ipynb)  # the others need nothing of these two
NBVAL := OMP_NUM_THREADS=2 $(BIN)/pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg \
	--nbval-cell-timeout 3600 --nbval-kernel-startup-timeout 600

# Nothing of the caller's own packages reaches .venv. Bytecode is written even where the caller switches that off:
# importing torch without it takes three times as long, in every kernel.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE MPLBACKEND
export PYTHONNOUSERSITE := 1

# At most two threads, however many cores there are: the miniatures gain nothing from more. For a run, run.py says so.
lab bench test-browser: export OMP_NUM_THREADS ?= 2
# It compares bytes, and more threads would come and go with the load.
torture: export OMP_NUM_THREADS ?= 1

# glibc gives every large tensor back to the kernel when it is freed, and asks for it again in the next step. Where page
# faults are slow that is most of the time: forward and backward of SAM's decoder took 4.5 s with it and 1.5 s without.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 8000000000
export MALLOC_TOP_PAD_ ?= 268435456

.DEFAULT_GOAL := help
.PHONY: help demo doctor test test-browser check torture bench tables lab publish lock

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(READY)  ## execute notebooks 00 to 05 on the storybook, print the results
	@$(BIN)/python notebooks/run.py demo

doctor: $(READY)  ## RUN=voc_92 ARGS="-p data_root ...": will this run (default: demo) work here, and what will it cost?
	@$(BIN)/python notebooks/doctor.py "$(or $(RUN),demo)" $(ARGS)

test: $(READY)  ## lint, run the tests, execute the notebooks in results/demo again and compare
	@log=$$(mktemp) && trap 'kill $$prints 2>/dev/null; rm -f "$$log"' EXIT; \
	$(NBVAL) $(filter-out $(QUICK),$(call prints_of,demo)) >"$$log" 2>&1 & prints=$$!; \
	$(BIN)/ruff check && $(BIN)/ruff format --check || exit 1; \
	OMP_NUM_THREADS=1 nice $(BIN)/pytest --durations=15 tests; tests=$$?; $(NBVAL) $(QUICK); quick=$$?; \
	echo "The other notebooks, executed at the same time:"; wait $$prints; same=$$?; cat "$$log"; \
	exit $$((tests | quick | same))

test-browser: .venv/.browser  ## open every notebook in JupyterLab and the results page in headless Chromium, keep screenshots
	@PLG_BROWSER=1 $(BIN)/pytest --durations=15 tests/browser

check: $(READY)  ## RUN=demo: execute a published run again and compare it cell by cell
	@test -n "$(and $(RUN),$(call prints_of,$(RUN)))" || \
		{ echo "Say which run that has executed notebooks in results/: make check RUN=demo"; exit 2; }
	@$(NBVAL) $(call prints_of,$(RUN))

torture: $(READY)  ## kill runs, damage files, change threads; writes results/reliability.json (half an hour)
	@$(BIN)/python tests/torture/malformed.py --write results/reliability.json
	@$(BIN)/python tests/torture/fuzz.py --write results/reliability.json
	@$(BIN)/python tests/torture/kills.py --write results/reliability.json
	@$(BIN)/python tests/torture/determinism.py --write results/reliability.json

bench: $(READY)  ## time ours and the originals in turn, in one process; writes results/bench
	@for each in masks labels sepl training threads scaling processes; do $(BIN)/python benchmarks/bench_$$each.py $(ARGS) || exit 1; done

tables: $(READY)  ## write the tables and numbers of README.md, docs/ and results/README.md from results/
	@$(BIN)/python docs/tables.py

lab: $(READY)  ## open the notebooks in JupyterLab
	@cd notebooks && ../$(BIN)/jupyter lab

publish: $(READY)  ## RUN=demo: copy a finished run from results/local to results, to commit it
	@test -n "$(RUN)" || { echo "Say which run: make publish RUN=demo"; exit 2; }
	@$(BIN)/python notebooks/run.py "$(RUN)" --publish

lock: $(READY)  ## write the lock files again; versions that still fit pyproject.toml stay
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --extra dev --extra models \
		--no-header --no-annotate --no-emit-index-url --output-file requirements.lock pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --group browser \
		--no-header --no-annotate --no-emit-index-url --constraint requirements.lock --output-file requirements-browser.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "plg-utils needs Python 3.11 or later. If you have one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "This Python has no venv. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check "uv<1"
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

# Beside the rest, which `make demo` and `make test` do not need. Chromium itself is the system's: the tests say how to get it.
.venv/.browser: requirements-browser.lock $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-browser.lock
	@touch $@
