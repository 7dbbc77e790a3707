# make demo: a synthetic world, a small model pre-trained on it, pictures. make test: all tests that are not marked slow.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
BIN = $(VENV)/bin

.PHONY: install demo test slow lint docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/multimae-eo demo --out runs/demo

test: install
	$(BIN)/python -m pytest -m "not slow" --durations=5

slow: install
	$(BIN)/python -m pytest -m slow --durations=5

lint: install
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

docs: install
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) site
