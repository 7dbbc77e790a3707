# make demo: a synthetic world, a small model pre-trained on it, pictures. make test: all tests that are not marked slow.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
BIN = $(VENV)/bin

.PHONY: install demo test slow lint docs bench clean

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

# The rivals need the plain build of torch, so the benchmarks have an environment of their own.
$(VENV)-bench/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-bench/bin/python -m pip install --quiet --editable ".[all,bench]"
	touch $@

BENCH = $(VENV)-bench/bin/python
bench: $(VENV)-bench/.installed
	$(BENCH) benchmarks/readers.py --runs 7 --json runs/bench/readers.json
	$(BENCH) benchmarks/memory.py --json runs/bench/memory.json
	$(BENCH) benchmarks/encoder.py --runs 9 --json runs/bench/encoder.json
	$(BENCH) benchmarks/step.py --runs 7 --json runs/bench/step.json
	$(BENCH) benchmarks/write_tables.py runs/bench docs/performance.md

clean:
	rm -rf $(VENV) $(VENV)-bench site
