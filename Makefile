# The two commands of the README are `make demo` and `make test`; each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What `make paper` runs, in an order in which each study finds the trunks of those before it; TEXT=DIR runs
# all of it on the text there too, as studies named …_text
MODEL ?= pico
TEXT ?=
BENCH ?=
STORE = paper/$(MODEL)/store
SWEEP = $(BIN)/python sweep.py -m model=$(MODEL) launch.store=$(STORE)
PAPER := timing fixed_extra fixed_total factor4 noise topk_variants order chain annealed_starts \
	growth_lr scratch_lr factor4_residual norms norm_placement ladder

.PHONY: setup demo paper test fault slow gpu check bench bench-check clean

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(READY)

demo: setup
	$(BIN)/python sweep.py -m study=quickstart
	$(BIN)/python report.py study=quickstart

paper: setup
	for study in $(PAPER); do \
		$(SWEEP) study=$$study || exit; \
		test -z "$(TEXT)" || $(SWEEP) study=$$study study_name=$${study}_text data=text data.path=$(TEXT) || exit; \
	done
	$(BIN)/python report.py do=paper launch.store=$(STORE) report.dir=paper/$(MODEL)

test: setup
	$(BIN)/python -m pytest

fault: setup
	$(BIN)/python -m pytest --timeout 600 -m fault

slow: setup
	$(BIN)/python -m pytest --numprocesses 0 --timeout 600 -m slow

gpu: setup
	$(BIN)/python -m pytest --numprocesses 0 -m gpu

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# BENCH="--only sweeps", say, or "--write"; docs/benchmarking.md
bench: setup
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python benchmarks/measure.py $(BENCH)

bench-check: setup
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python benchmarks/measure.py --check $(BENCH)

clean:
	rm -rf $(VENV) *.egg-info
