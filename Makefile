# make: set up, run the main job at the scale of config.yaml, build the report. make test: set up, lint, test, run at scale smoke.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SNAKEMAKE := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --cores all --resources gpu=1
SCALE ?= $(shell sed -n 's/^scale: *\([a-z]*\).*/\1/p' config.yaml)

# packages are compiled as they are first imported, which takes less time than all of them beforehand; a shell that forbids it would do so at every start
unexport PYTHONDONTWRITEBYTECODE

.PHONY: all setup run report test lint smoke clean

all: run

setup: $(VENV)/.ready

# $(1): extras
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Concord needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.$(1)'
	@touch $(VENV)/.ready $@
endef

$(VENV)/.ready: constraints.txt pyproject.toml
	$(call install)

$(VENV)/.ready-to-test: constraints.txt pyproject.toml
	$(call install,[test])

run: setup
	$(SNAKEMAKE) --config scale=$(SCALE)
	$(SNAKEMAKE) --config scale=$(SCALE) --report results/$(SCALE)/report.html
	@echo
	@echo "Done, at scale $(SCALE):"
	@echo "  tables   $$(ls -d results/$(SCALE)/*/tables | tr '\n' ' ')"
	@echo "  figures  $$(ls -d results/$(SCALE)/*/figures | tr '\n' ' ')"
	@echo "  report   results/$(SCALE)/report.html"

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q
	$(MAKE) smoke

lint: $(VENV)/.ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --line-length 150 --check workflow rules
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/workflow/lint_workflow.py

smoke: setup
	$(MAKE) run SCALE=smoke
	$(SNAKEMAKE) --config scale=smoke --dry-run 2>&1 | grep "Nothing to be done"

clean:
	rm -rf results .snakemake
