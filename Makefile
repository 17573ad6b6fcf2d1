# Two commands on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
# The newest Python that runs: on PATH, or where pyenv keeps those that are not switched on.
NEWEST_PYTHON ?= $(shell for v in 3.14 3.13 3.12 3.11; do \
	for python in $$(which -a python$$v) "$$HOME"/.pyenv/versions/$$v.*/bin/python$$v; do \
	"$$python" -c 'import ssl, sqlite3' 2>/dev/null && echo "$$python" && exit; done; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := -m pip install --quiet --disable-pip-version-check
SUITE = OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(1)/bin/python -m pytest -q -n 2

.PHONY: demo docs test test-newest test-lowest test-peers test-exports wheel-test clean web web-test

demo: $(READY)
	$(BIN)/scmedley demo --out demo-run --overwrite

test: $(READY)
	$(BIN)/ruff check --no-cache src tests benchmarks recipes docs
	$(BIN)/ruff format --check src tests benchmarks recipes docs/*.py
	$(BIN)/mypy
	$(call SUITE,$(VENV))

# The same suite with the newest versions of everything, with the lowest that pyproject.toml allows, and the
# comparison with the rivals that are too heavy for every test. Each has an environment of its own.
test-newest:
	$(call venv,$(VENV)-newest,$(NEWEST_PYTHON))
	$(VENV)-newest/bin/python $(PIP) --upgrade --upgrade-strategy eager -e '.[dev]'
	$(call SUITE,$(VENV)-newest)

test-lowest: # of old packages beside newer ones, which warn of each other
	$(call venv,$(VENV)-lowest,$(PYTHON))
	$(VENV)-lowest/bin/python $(PIP) uv
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest --resolution lowest-direct -e '.[dev]'
	$(call SUITE,$(VENV)-lowest) -W ignore::DeprecationWarning -W ignore::FutureWarning -W ignore::ImportWarning

test-peers:
	$(call venv,$(VENV)-peers,$(PYTHON))
	$(VENV)-peers/bin/python $(PIP) -c constraints.txt -e '.[dev,peers,liger]'
	$(call SUITE,$(VENV)-peers) -m 'heavy or not heavy' tests/test_peers.py

# Exports, opened by the programs that they are for, which have an environment of their own.
test-exports: $(READY)
	$(call venv,$(VENV)-exports,$(PYTHON))
	$(VENV)-exports/bin/python $(PIP) 'cellbrowser>=1.2.20' 'multiqc>=1.35' 'vitessce>=3.8'
	SCMEDLEY_EXPORT_PYTHON="$(CURDIR)/$(VENV)-exports/bin/python" $(call SUITE,$(VENV)) -m heavy tests/test_export_tools.py

# The wheel in an empty environment, away from the repository. It is in dist/ beside the sdist.
# PIP_CONSTRAINT=FILE holds versions, such as that of torch without CUDA: pip reads it itself.
wheel-test:
	$(call venv,$(VENV)-wheel,$(PYTHON))
	rm -rf dist
	$(VENV)-wheel/bin/python $(PIP) build
	$(VENV)-wheel/bin/python -m build --outdir dist .
	rm -rf $(VENV)-wheel
	$(call venv,$(VENV)-wheel,$(PYTHON))
	$(VENV)-wheel/bin/python $(PIP) "$$(ls dist/*.whl)[report]"
	cd $(VENV)-wheel && rm -rf demo-run && bin/scmedley --version && bin/scmedley demo

define venv
@$(2) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "scMedley needs Python 3.11 or newer; '$(2)' is older or does not run. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
$(2) -m venv $(1)
endef

# The site, with its notebooks run; warnings and links that lead nowhere are errors. Needs no network once installed.
# -E reads all pages anew: a page of the reference that is new since the last build would otherwise lack its parts.
docs: $(VENV)-docs/.ready
	$(VENV)-docs/bin/python -m sphinx -q -E -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html
	$(VENV)-docs/bin/python docs/check_links.py docs/_build/html

$(VENV)-docs/.ready: pyproject.toml constraints.txt
	$(call venv,$(VENV)-docs,$(PYTHON))
	$(VENV)-docs/bin/python $(PIP) -c constraints.txt -e '.[docs]'
	@touch $@

# The report's explorer: only these two need Node. The bundle is in the repository.
web:
	cd web && npm ci --no-audit --no-fund && npm run build

web-test: $(READY) web
	$(BIN)/python -m pytest -q -s tests/test_explorer_browser.py
	@git diff --exit-code --stat HEAD -- src/scmedley/report/explorer.js || \
		{ echo "The bundle in the repository is not what web/ builds: commit the new one."; exit 1; }

clean:
	rm -rf $(VENV) $(VENV)-* demo-run docs/_build docs/api/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	$(call venv,$(VENV),$(PYTHON))
	@echo "Installing packages into $(VENV): some minutes without output"
	$(BIN)/python $(PIP) -c constraints.txt -e '.[dev]'
	@touch $@
