# Two commands for users: `make demo` and `make test`. Each makes what it needs in .venv.
#
#   make demo [IMAGES=folder] [OUT=demo]   the tour, as OUT/report.html
#   make test [ARGS="-k store"]            all tests but the long ones
#   make test ARGS=--cov                   all tests, and how many lines they run
#   make check                             lint, types, import contracts, docs
#   make slow | soak                       tests that must hold before a change lands | sweeps
#   make bench                             speed ratios, kept in benchmarks/
#   make peers [ARGS=pgd]                  train the digits networks of the tests again | one of them
#   make gallery [ARGS=grad-cam]           all pictures of the docs | a technique's alone

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= demo
IMAGES ?=
ARGS   ?=

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# One thread a test process, so that two of them share two cores without fighting.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test slow soak bench check lint types contracts docs gallery peers format clean

demo: $(VENV)/.demo
	$(BIN)/timmscope demo --output "$(OUT)" $(if $(IMAGES),--images "$(IMAGES)")

test: $(VENV)/.dev
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not soak" $(ARGS)

slow: $(VENV)/.dev
	@$(MAKE) --no-print-directory $(VENV)-peers/.made || \
	  echo "no environment of peers could be made: tests that need it are skipped"
	$(PYTEST) -n 2 --dist loadgroup -m slow $(ARGS)

soak: $(VENV)/.fuzz
	$(PYTEST) -m soak $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python -m tests.bench $(ARGS)

check: lint types contracts docs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/zizmor --offline --quiet .github

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/python -m tests.docs.example_types
	$(BIN)/mypy tests/packaging/typed_plugins.py

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# Analyses read the store of the demo, which is made once and kept.
gallery: $(VENV)/.dev demo
	PYTHONPATH=. $(BIN)/python docs/_samples.py "$(OUT)/demo.scope" $(ARGS)
	$(if $(ARGS),,$(BIN)/python docs/_picture.py)
	$(if $(ARGS),,PYTHONPATH=. $(BIN)/python docs/_robustness.py)
	$(if $(ARGS),,$(BIN)/python docs/_imagined.py)
	$(if $(ARGS),,$(BIN)/python docs/_atlas.py)
	$(if $(ARGS),,$(BIN)/python docs/_techniques.py)
	$(if $(ARGS),,$(BIN)/python docs/_fields.py)

# One thread, because the number of threads can change the last bits.
peers: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.digits $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-peers docs/_build dist .coverage .pytest_cache .mypy_cache .ruff_cache

# The stamps are newer than what decides the environment's contents.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "timmscope needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25.1'

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[demo]'
	@touch $@

# The fuzzer is built for Linux alone; elsewhere its tests are skipped.
$(VENV)/.fuzz: $(VENV)/.dev
	$(PIP) install --quiet -c constraints.txt --group fuzz
	@touch $@

# It sees what the tests have installed, and only the peers and their old dependencies are its own.
$(VENV)-peers/.made: pyproject.toml | $(VENV)/.dev
	rm -rf $(VENV)-peers
	$(BIN)/python -m tests.environments $(VENV)-peers peers
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[demo,embed]' --group test --group lint --group docs
	@touch $@ $(VENV)/.demo
