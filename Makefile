# make: install, then train on the bundled sample. make test: install what the tests need, then run them.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile  # on two cores: one process often waits

.PHONY: run real test nightly lint docs wheel
run: .venv/installed
	$(BIN)/python main.py

real: .venv/installed  # on real recordings: ten people, their earlier sessions → their last one
	$(BIN)/python main.py --data-location MYO_10_people.parquet --split session --model-name models/gpt2-compact

test: .venv/tested
	$(PYTEST)

nightly: .venv/tested  # what takes long; `make test` leaves it out
	$(PYTEST) -m nightly

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

docs: export NO_MKDOCS_2_WARNING = 1
docs: .venv/tested  # the site, in site/
	$(BIN)/mkdocs build --quiet --strict

wheel: .venv/tested  # in an empty environment, outside the checkout
	$(BIN)/python -m pytest tests/test_wheel.py -m nightly

.venv/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(INSTALL) -r requirements.txt
	@touch $@

.venv/tested: requirements-test.txt requirements-optional.txt .venv/installed
	$(INSTALL) -r requirements-test.txt
	@touch $@
