# What a person types. The environment is made when it is missing; VENV chooses another place for it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PLUGINS := $(sort $(wildcard plugins/*/pyproject.toml))
RUN := runs/quickstart

# More options for pytest, as in: make test TEST="-k objective". With COVER=1 coverage is measured beside.
TEST ?=
COVER ?=
# The tests of a file stay together, so that what its fixtures make is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-slow test-all coverage lint bench schemas site clean help

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

# One marker for the installed state: it is renewed when a project file or the constraints change.
$(VENV)/.installed: pyproject.toml constraints.txt requirements.txt $(PLUGINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "dgpo needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version); try: make PYTHON=python3.11"; exit 2; }
	@echo "Installing dgpo, its plugins and what the tests need into $(VENV): 7 GB, 3 to 10 minutes, silently."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group dev --requirement requirements.txt
	touch $@

quickstart: $(VENV)/.installed  ## Train the miniature model for a few minutes and write a report
	$(BIN)/dgpo train examples/quickstart.yaml --resume auto
	$(BIN)/dgpo report $(RUN)

test: $(VENV)/.installed  ## Run the tests (about 40 minutes on two cores)
	$(PYTEST) -m "not slow" $(if $(COVER),--cov --cov-report=) $(TEST)

# Property tests are run again, with more examples. Coverage is that of both.
test-slow: $(VENV)/.installed  ## Run what `make test` leaves out
	$(PYTEST) -m "slow or hypothesis" --hypothesis-profile=thorough \
		$(if $(COVER),--cov --cov-append --cov-report=term-missing:skip-covered --cov-fail-under=90) $(TEST)

test-all:  ## Run every test
	$(MAKE) test
	$(MAKE) test-slow

coverage:  ## Run every test and measure coverage
	$(MAKE) test-all COVER=1

lint: $(VENV)/.installed  ## Linter, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/dgpo schema --check

bench: $(VENV)/.installed  ## Measure speed as ratios and write docs/performance.md (half an hour)
	$(BIN)/python -m benchmarks

schemas: $(VENV)/.installed  ## Write schemas/json and CONTRIBUTING's tables of layers
	$(BIN)/dgpo schema
	$(BIN)/python -m tests.layers

# NO_MKDOCS_2_WARNING: the theme would print a notice about its successor on every build.
site: $(VENV)/.installed  ## Build the documentation site in build/site; a broken link is an error
	@echo "Building the site: half a minute or more, silently."
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html; with its search: $(BIN)/python -m http.server -b 127.0.0.1 -d build/site"

clean:  ## Remove the environment and caches (never runs/)
	rm -rf $(VENV) .coverage .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
