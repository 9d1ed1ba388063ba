# make book, make test: each makes .venv and installs what it needs on the first run.
# In an environment of your own (conda): make book VENV="$CONDA_PREFIX"
# With the versions and hashes of requirements.lock: make test LOCKED=1

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.advlib-$(if $(LOCKED),locked,installed)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
BROWSER := $(shell command -v chromium || command -v google-chrome)
BENCH ?= .venv-bench
# begun first, so that no core is idle at the end
LONGEST := $(patsubst %,tests/test_%.py,trained jupyterlab book lab coursework examples)

.PHONY: help book test lint networks results slow bench chromium lock lab coursework exercises pdf clean

help: ## say what there is to make
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 16

# Runs when pyproject.toml, the lock or LOCKED has changed since the last installation. With LOCKED
# pip builds nothing but advlib itself, and that with the locked setuptools.
$(STAMP): pyproject.toml $(if $(LOCKED),requirements.lock)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@echo "== install: advlib and its tools into $(VENV) (several minutes, several GB: it contains PyTorch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.advlib-installed $(VENV)/.advlib-locked
ifdef LOCKED
	$(PIP) --only-binary :all: --require-hashes -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
else
	$(PIP) -e ".[test]"
endif
	@touch $@

# Old pages and doctrees go first: an incremental build would not repeat their warnings. What has
# been executed stays, by nbval or by a build; book/_ext/execution.py says what it depends on.
book: $(STAMP) ## execute what has not been executed, and build the site into _build/html
	@echo "== book: execute what has not been executed, and write the pages (any warning is an error)"
	@rm -rf _build/html _build/.doctrees _build/jupyter_execute
	$(BIN)/jupyter-book build . -n -W --keep-going
	@echo "== book: check the pages for tracebacks and broken links"
	$(BIN)/python book/_ext/check_html.py _build/html
	@echo "== book: done, open _build/html/index.html"

test: lint ## lint, unit tests, every chapter's cells, then the book and its pages
	@echo "== test: unit tests"
	$(BIN)/python -m pytest $(LONGEST) tests -n 2 --dist loadfile --no-loadscope-reorder
	@echo "== test: every code cell of every page that has not been executed, through nbval"
	$(BIN)/python -m pytest book
	@$(MAKE) --no-print-directory book
	@echo "== test: the built pages, in Chromium, and what else needs a built book"
	$(BIN)/python -m pytest tests -m built
	@echo "== test: passed"

lint: $(STAMP) ## ruff, mypy and spelling
	@echo "== lint: ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "== lint: mypy"
	$(BIN)/mypy
	@echo "== lint: spelling"
	$(BIN)/codespell

networks: $(STAMP) ## train the networks that ship with advlib again, into advlib/book/trained
	@echo "== networks: train them all by their recipes, and say what changed"
	$(BIN)/python -m advlib networks

results: $(STAMP) ## train and attack again for the book's numbers, into book/results.json and README.md
	@echo "== results: three seeds of both networks, both protocols"
	$(BIN)/python -m advlib results
	$(BIN)/python -m advlib report
	$(BIN)/python -m advlib sandwich
	$(BIN)/python -m advlib smoothing
	$(BIN)/python -m advlib minimum
	$(BIN)/python -m tools.readme_table

# torchattacks wants an old requests that Sphinx refuses, so the other libraries live apart
$(BENCH)/.advlib-installed: pyproject.toml
	@echo "== bench: an environment of its own, in $(BENCH)"
	@test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -e .
	$(BENCH)/bin/python -m benchmarks install
	@touch $@

slow: $(BENCH)/.advlib-installed ## tests that take minutes: other libraries as oracles, thousands of proofs
	$(BENCH)/bin/python -m pytest tests/test_slow.py -m slow

bench: $(BENCH)/.advlib-installed $(STAMP) ## compare with six attack libraries and measure, into benchmarks/results (hours)
	$(BENCH)/bin/python -m benchmarks peers
	$(BENCH)/bin/python -m benchmarks autoattack
	$(BENCH)/bin/python -m benchmarks minimum
	$(BENCH)/bin/python -m benchmarks parts
	$(BENCH)/bin/python -m benchmarks training
	$(BIN)/python -m tools.readme_table

# Asks the network for nothing if there is a browser; tests/browser.py knows where Playwright's is.
chromium: $(if $(BROWSER),,$(STAMP)) ## install the browser that the tests of pages need, if there is none
ifneq ($(BROWSER),)
	@echo "== chromium: $(BROWSER) is there"
else
	@if PYTHONPATH=tests $(BIN)/python -c 'import browser, sys; sys.exit(not browser.CHROMIUM)'; then \
	  echo "== chromium: Playwright's own is there"; exit; fi; \
	echo "== chromium: from the system's packages if we may, else Playwright's own"; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  export DEBIAN_FRONTEND=noninteractive; \
	  { apt-get -qq update && apt-get -qq install -y chromium; } || \
	  $(BIN)/playwright install --with-deps chromium; \
	else $(BIN)/playwright install chromium; fi
endif

# uv keeps the versions that requirements.lock has, as far as they fit. It has an environment of its
# own, so that it is no part of what it pins.
lock: ## what the tests need, with versions and hashes, into requirements.lock
	@echo "== lock: resolve for every system and Python from 3.11 on, into requirements.lock"
	@test -x _build/uv/bin/python || $(PYTHON) -m venv _build/uv
	_build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	_build/uv/bin/uv pip compile pyproject.toml --extra test --universal --python-version 3.11 \
	  --only-binary :all: --generate-hashes --no-config --custom-compile-command "make lock" \
	  --quiet --output-file requirements.lock

# The setting goes into the environment, not into the reader's own configuration.
lab: $(STAMP) ## open the chapters in JupyterLab
	@echo "== lab: double-click a chapter, and it opens as a notebook"
	@JUPYTER_CONFIG_DIR=$(abspath $(VENV))/etc/jupyter $(BIN)/jupytext-config set-default-viewer markdown
	$(BIN)/jupyter lab --ServerApp.root_dir=book

coursework: $(STAMP) ## the exercises as nbgrader assignments, into coursework/
	@echo "== coursework: an instructor's and a student's edition of every chapter's exercises"
	$(BIN)/python book/_ext/coursework.py coursework

exercises: $(STAMP) ## have nbgrader grade the solutions of every chapter, and unsolved copies
	@echo "== exercises: every chapter's, solved and unsolved"
	$(BIN)/python -m pytest tests/test_coursework.py -m slow

pdf: $(STAMP) ## the whole book as _build/book.pdf (needs Chromium)
	@echo "== pdf: one page of the whole book, then print it"
	$(BIN)/jupyter-book build . --builder custom --custom-builder singlehtml -n -W --keep-going
	$(BIN)/python -m tools.print_book _build/singlehtml _build/book.pdf

clean: ## remove the built site and its caches (not the environment)
	@echo "== clean: _build and tool caches"
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache
