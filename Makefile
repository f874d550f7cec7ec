# make demo    curate a real corpus from start to end, in a fresh virtual environment
# make test    lint, then run the tests, in the same environment, in two processes of a thread each
#
# Needs Python 3.11 or newer and the package index. Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := demo

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_OFFLINE := 1

.PHONY: install demo lint test clean check-python

install: $(VENV)/.installed

# The stamp: installs again when a dependency or its pinned version changes.
$(VENV)/.installed: pyproject.toml constraints.txt | check-python
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	@touch $@

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "curate needs Python 3.11 or newer, and '$(PYTHON)' is not: name one with PYTHON=, as in make test PYTHON=python3.12" >&2; \
	  exit 1; }

demo: install
	rm -rf $(DEMO)/out
	$(BIN)/python examples/harvest_python.py $(DEMO)/corpus --megabytes 5.1
	$(BIN)/curate run pipelines/demo.yaml
	@echo; echo "What share of each kind of text was kept:"
	@$(BIN)/curate log $(DEMO)/out --sql "SELECT value AS source, documents, documents_kept, \
	  tokens, tokens_kept, round(enrichment, 2) AS enrichment FROM keep_rate_by_source"
	@echo; echo "Why was this document dropped?"
	@id=$$($(BIN)/curate log $(DEMO)/out --format csv --sql "SELECT document_id FROM document \
	  WHERE NOT kept AND tokens > 0 ORDER BY source = 'docstrings' DESC, document_id LIMIT 1" \
	  | tail -n 1 | tr -d '\r') && \
	  echo "curate log $(DEMO)/out --why $$id" && $(BIN)/curate log $(DEMO)/out --why "$$id"
	@echo; echo "The results:"
	@echo "  $(DEMO)/out/data                  the curated dataset, as Parquet"
	@echo "  $(DEMO)/out/selection_log.duckdb  why each document was kept or dropped"
	@echo "  $(DEMO)/out/report.html           the report"
	@echo "  $(DEMO)/out/README.md             the dataset card"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Only what is made here: an environment elsewhere (VENV=...) is left alone.
clean:
	rm -rf .venv $(DEMO) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
