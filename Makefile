PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format types clean

# What each target needs is installed once per change of pyproject.toml; the package itself every time.
$(VENV)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip "setuptools>=77" wheel
	touch $@

$(VENV)/demo-extras: $(VENV)/pip pyproject.toml
	$(BIN)/pip install --quiet ".[verify]"
	touch $@

$(VENV)/test-extras: $(VENV)/pip pyproject.toml
	$(BIN)/pip install --quiet ".[test]"
	touch $@

define install
	rm -rf build/lib build/bdist.*
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --force-reinstall .
endef

# A short tour on a pre-trained model from PyPI: compile, run, emit, bench.
demo: $(VENV)/demo-extras
	$(install)
	$(BIN)/python bench/demo.py

test: $(VENV)/test-extras lint
	$(install)
	$(BIN)/python -m pytest tests --numprocesses 2 --dist worksteal

lint: $(VENV)/test-extras types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test-extras
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The three folders under the one name they are installed by, as links, for the type checker.
types:
	rm -rf build/types
	mkdir -p build/types/fusile
	for entry in compiler/*; do ln -s "$(CURDIR)/$$entry" build/types/fusile/; done
	ln -s "$(CURDIR)/kernels" "$(CURDIR)/templates" build/types/fusile/

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache fusile.egg-info
