# Two commands do everything on a machine with only Python 3.11 or newer: `make demo` and `make test`.
# PYTHON chooses the interpreter, VENV where the virtual environment goes, RUN where the demo's run goes.

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
JOBS ?= 2
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test check format docs benchmark clean

demo: $(VENV)/.agent  ## Learn on the built-in city, for a fleet of 10,000 taxis, then show the policy on such a fleet
	$(BIN)/safe-m3 train --scenario shenzhen --model gp --fleet 10000 --episodes 40 --out $(RUN) --resume
	$(BIN)/safe-m3 fleet $(RUN) --taxis 10000

test: $(VENV)/.dev  ## All tests, doctests included, in JOBS processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadscope # one thread per process: more would fight for the cores

check: $(VENV)/.dev  ## Static checks: style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.docs  ## The documentation site, strictly, into site/
	$(BIN)/sphinx-build -W --keep-going -q docs site

benchmark: $(VENV)/.dev  ## Timings and memory
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/environment.py
	$(BIN)/python benchmarks/sb3_adapter.py
	$(BIN)/python benchmarks/fleet.py
	$(BIN)/python benchmarks/trip_files.py
	$(BIN)/python benchmarks/unknown_trips.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site docs/environments .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# A venv that failed half-way, for want of Debian's python3-venv for instance, is not taken for one the next time.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old or missing: choose Python 3.11 or newer with make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# One stamp per set of extras: an edit of the requirements installs again, nothing else does.
$(VENV)/.agent: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[agent,gp]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev,docs]'
	touch $@
