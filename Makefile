# make demo | make test: all that a fresh clone needs. make test-all: every test. The rest is for development.

# the first Python >= 3.11 that can make a virtual environment; `make setup PYTHON=...` overrides
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2
# each file's tests on one worker; a worker that crashes ends the run, which would else wait for it
PYTEST := -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
DOCS := .cache/docs
EMPTY := .cache/package
PEERS := .cache/peers
NEWEST := .cache/newest
QUIETLY := -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: setup demo test test-all test-newest lint format typecheck notebooks docs package peers bench constraints release clean

setup: $(STAMP)

$(BIN)/pip:
	@test -x $@ || { test -n "$(PYTHON)" || \
		{ echo "make: no Python >= 3.11 with venv found; pass one as PYTHON=/path/to/python" >&2; exit 1; }; \
		echo "Making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }

$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing into $(VENV) (some minutes the first time)"
	@$(PIP) install --quiet --constraint constraints.txt --upgrade pip
	@$(PIP) install --quiet --no-compile --constraint constraints.txt --build-constraint constraints.txt \
		--editable '.[test,notebooks]'
	@touch $@

# train on handwritten digits, sample, evaluate, draw pictures
demo: $(STAMP)
	@$(BIN)/jflow demo

# what to run before a commit: the default tier, lint and types
test: $(STAMP)
	$(BIN)/python $(PYTEST)
	@$(MAKE) --no-print-directory lint typecheck

# every test: those, and the slow tier with the examples of docstrings and pages
test-all: test
	$(BIN)/python $(PYTEST) -m slow

# the default tier on Python 3.12 with the newest versions that pyproject.toml allows, made new at each call
test-newest: export PYENV_VERSION = 3.12
test-newest:
	@$(MAKE) --no-print-directory VENV=$(NEWEST) PYTHON=python3.12 $(NEWEST)/bin/pip
	@$(NEWEST)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade pip
	@$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[test]'
	@$(NEWEST)/bin/python -c "import sys, jax; print('Python', sys.version.split()[0], 'with jax', jax.__version__)"
	$(NEWEST)/bin/python $(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(STAMP)
	$(BIN)/pyright

# the executed copies, with their pictures, go to .cache/notebooks
notebooks: $(STAMP)
ifeq ($(NOTEBOOKS),)
	@echo "no notebooks"
else
	printf '%s\n' $(NOTEBOOKS) | xargs -n 1 -P $(WORKERS) $(BIN)/python -m jupyter nbconvert --to notebook --execute \
		--ExecutePreprocessor.timeout=600 --output-dir .cache/notebooks
endif

# the site, strict, into .cache/site; its tools have an environment of their own
docs: $(DOCS)/.docs
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict --quiet
	@echo "The site is .cache/site/index.html"

$(DOCS)/.docs: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory VENV=$(DOCS) $(DOCS)/bin/pip
	@$(DOCS)/bin/python $(QUIETLY) --upgrade pip
	@$(DOCS)/bin/python $(QUIETLY) --build-constraint constraints.txt '.[docs]'
	@touch $@

# sdist, and the wheel made of it, into dist/; the wheel in an empty environment: its import, and the README's ten lines
package:
	@rm -rf dist $(EMPTY)
	@$(MAKE) --no-print-directory VENV=$(EMPTY) $(EMPTY)/bin/pip
	@$(EMPTY)/bin/python $(QUIETLY) --upgrade pip
	@$(EMPTY)/bin/python $(QUIETLY) --target $(EMPTY)/tools hatchling
	PYTHONPATH=$(EMPTY)/tools $(EMPTY)/bin/python -m hatchling build --target sdist --directory dist
	@$(EMPTY)/bin/python -m pip wheel --quiet --no-deps --build-constraint constraints.txt --wheel-dir dist dist/*.tar.gz
	@$(EMPTY)/bin/python $(QUIETLY) dist/*.whl
	@ls dist
	@env -u PYTHONPATH $(EMPTY)/bin/python -I tests/package.py README.md

# beside torch libraries, in an environment of their own: the listings of docs/from, rules on their grids, couplings
peers: $(PEERS)/.peers
	$(PEERS)/bin/python benchmarks/peer_pages.py
	$(PEERS)/bin/python benchmarks/peer_parity.py
	$(PEERS)/bin/python benchmarks/peer_couplings.py

$(PEERS)/.peers: pyproject.toml constraints.txt benchmarks/peers-requirements.txt benchmarks/peers-alone.txt
	@$(MAKE) --no-print-directory VENV=$(PEERS) $(PEERS)/bin/pip
	@$(PEERS)/bin/python $(QUIETLY) --upgrade pip
	@$(PEERS)/bin/python $(QUIETLY) --build-constraint constraints.txt --requirement benchmarks/peers-requirements.txt --editable .
	@$(PEERS)/bin/python $(QUIETLY) --no-deps --requirement benchmarks/peers-alone.txt
	@touch $@

# the speed beside hand-written programs, and beside the peers where `make peers` has installed them
bench: $(STAMP)
	$(if $(wildcard $(PEERS)/.peers),$(PEERS),$(VENV))/bin/python benchmarks/bench.py

# the newest versions that pyproject.toml allows, for Python 3.11 and 3.12, into constraints.txt
constraints:
	@.ci/constraints

# checks the tree, the version and the changelog, builds by `make package`, and tags; nothing is published
release:
	@.ci/release

clean:
	rm -rf $(VENV) build dist *.egg-info .cache .pytest_cache .ruff_cache
	find jflow tests benchmarks -name __pycache__ -type d -exec rm -rf {} + 2>/dev/null || true
