# Two commands on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check clean web web-test

demo: $(READY)
	$(BIN)/scmedley demo --out demo-run --overwrite

test: $(READY)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

# The report's explorer: only these two need Node. The bundle is in the repository.
web:
	cd web && npm ci --no-audit --no-fund && npm run build

web-test: $(READY) web
	$(BIN)/python -m pytest -q -s tests/test_explorer_browser.py
	@git diff --exit-code --stat HEAD -- src/scmedley/report/explorer.js || \
		{ echo "The bundle in the repository is not what web/ builds: commit the new one."; exit 1; }

clean:
	rm -rf $(VENV) demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "scMedley needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
