# make: install and train on the bundled sample; make test: install what tests need and run them.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint
run: .venv/installed
	$(BIN)/python main.py

test: .venv/tested
	$(BIN)/python -m pytest -n 2 --dist loadfile  # two processes, a file each

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.venv/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt
	@touch $@

.venv/tested: requirements-test.txt requirements-optional.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-test.txt
	@touch $@
