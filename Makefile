# make demo, make test, make check: each first makes the environment in .venv, once.
# Needed on the machine: Python 3.11 or newer with venv, and make. uv is used when it is there and fetched when it is not.

VENV    := .venv
# The first of these that runs and is new enough; `make PYTHON=/path/to/python demo` chooses another.
PYTHON  ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
             $$p $(RECENT) >/dev/null 2>&1 && echo $$p && break; done)
UV      := $(shell command -v uv 2>/dev/null)
PY      := $(VENV)/bin/python
STAMP   := $(VENV)/.installed
# The project itself with the faiss for CPUs and what the tests and linters need.
WHAT    := -c constraints.txt -e '.[cpu,dev]'
RECENT  := -c 'import sys; sys.exit(sys.version_info < (3, 11))'

# uv gives up on a silent connection after this many seconds; some wheels are large.
export UV_HTTP_TIMEOUT ?= 300

.PHONY: help setup demo test check docs format constraints clean clean-env
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP)  ## find the wrong labels of the embedded data set (about four minutes, into runs/glyphs)
	$(PY) -m cleanscale.train

# Two processes beside each other: many tests wait. A file's tests stay together, as they share runs and servers.
test: $(STAMP)  ## run the tests; PYTEST="-k name" passes arguments on
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

check: $(STAMP)  ## lint, format, types and import rules
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports --no-cache

format: $(STAMP)  ## put the code into the house's format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(STAMP)  ## write docs/settings.md from the settings
	$(PY) docs/settings_table.py > docs/settings.md

setup: $(STAMP)  ## only make the environment

# Written last: an installation that was interrupted has no stamp and is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(PY) $(RECENT) 2>/dev/null || $(MAKE) --no-print-directory venv
	@$(if $(UV),:,$(VENV)/bin/uv --version >/dev/null 2>&1 || $(PY) -m pip install --quiet -c constraints.txt uv)
	@rm -f $@
	$(or $(UV),$(VENV)/bin/uv) pip install --python $(PY) --compile-bytecode $(WHAT) || \
	  { echo 'uv failed (it does not read the configuration of pip); trying pip itself' >&2; $(PY) -m pip install $(WHAT); }
	@touch $@

.PHONY: venv
venv:
	@$(or $(PYTHON),false) $(RECENT) 2>/dev/null || { \
	  echo "cleanscale needs Python 3.11 or newer; $(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>&1 || echo missing)." >&2; \
	  echo 'Install one, or name it: make PYTHON=/path/to/python3.11 demo' >&2; exit 2; }
	@rm -rf $(VENV)
	@echo 'making $(VENV) with $(PYTHON)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo 'Python could not make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 2; }

constraints: $(STAMP)  ## move every dependency to its newest version in constraints.txt
	@sed -n '/^#/p' constraints.txt > constraints.new
	@echo uv | $(or $(UV),$(VENV)/bin/uv) pip compile --upgrade --all-extras --no-header --no-annotate --quiet \
	  --python $(PY) pyproject.toml - >> constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove caches and builds; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find cleanscale tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

clean-env: clean  ## remove the environment too
	rm -rf $(VENV)
