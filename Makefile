# make demo: a synthetic world, a small model pre-trained on it, pictures. make test: all tests that are not marked slow.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch
# Packages by version and hash, for Python 3.11 on Linux: make LOCK=.ci/lock.txt, as CI does; SECURITY.md says more.
LOCK ?=
BIN = $(VENV)/bin

.PHONY: install demo test slow lint lock audit docs build core integrations lowest bench faults study clean full-mmearth100k full-mmearth64 full-geobench full-studies full-bench

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
ifeq ($(LOCK),)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
else  # torch comes from the lock, the libraries that a build for CUDA needs do not
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
endif
	touch $@

demo: install
	$(BIN)/multimae-eo demo --out runs/demo

test: install  # a process per core; the tests of a file share one
	$(BIN)/python -m pytest -m "not slow" --durations=40 --numprocesses logical --maxprocesses 8 --dist loadfile

SLOW ?= --ignore tests/integrations
slow: install  # those of the integrations run where these are installed
	$(BIN)/python -m pytest -m slow $(SLOW) --durations=5

lint: install
	$(BIN)/ruff check src tests benchmarks .ci
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typed_user.py
	$(BIN)/python .ci/lock.py --check

# The newest versions of everything, by Python 3.11 on Linux; look at what changes before committing it.
lock: install
	$(BIN)/python .ci/lock.py --torch "$(TORCH)"

# Asks a service for known vulnerabilities, so it needs the network; fails where a package could not be asked for.
audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet pip-audit==2.10.1
	$(VENV)-audit/bin/pip-audit --strict --require-hashes --disable-pip --requirement .ci/lock.txt

docs: install
	$(if $(LOCK),,$(BIN)/python -m pip install --quiet --editable ".[docs]")
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Wheel and source archive, as they would be published.
build: install
	rm -rf dist
	$(BIN)/python -m build $(if $(LOCK),--no-isolation) --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/python .ci/check_wheel.py dist

# The wheel alone, with torch and nothing else.
core: build
	rm -rf $(VENV)-core
	$(PYTHON) -m venv $(VENV)-core
	$(VENV)-core/bin/python -m pip install --quiet "$(TORCH)" dist/*.whl
	cd dist && ../$(VENV)-core/bin/python ../tests/minimal/check_core.py
	rm -rf $(VENV)-core

# TerraTorch and TorchGeo need the plain build of torch, and the newest of each cannot be installed together.
# TorchGeo's newest and torchgeo-bench need Python 3.12 or newer.
NEWER ?= $(shell .ci/python 3.13 3.12)
$(VENV)-terratorch/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-terratorch
	$(VENV)-terratorch/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-terratorch/bin/python -m pip install --quiet --editable ".[terratorch,train,maps]" torchgeo pytest pytest-timeout
	touch $@

$(VENV)-torchgeo/.installed: pyproject.toml
	$(NEWER) -m venv $(VENV)-torchgeo
	$(VENV)-torchgeo/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-torchgeo/bin/python -m pip install --quiet --editable ".[torchgeo,train,maps,export]" "torchgeo-bench; python_version >= '3.12'" pytest pytest-timeout hypothesis
	touch $@

WITH_CORE = tests/integrations tests/test_inputs.py tests/test_model.py tests/test_golden.py tests/test_checkpoint.py tests/test_codecs.py tests/test_masking.py tests/test_heads.py
integrations: integrations-terratorch integrations-torchgeo
integrations-terratorch: $(VENV)-terratorch/.installed
	$(VENV)-terratorch/bin/python -m pytest -p no:cacheprovider $(addprefix tests/integrations/test_,terratorch.py torchgeo.py timm.py) --durations=5
integrations-torchgeo: $(VENV)-torchgeo/.installed
	$(VENV)-torchgeo/bin/python -m pytest -p no:cacheprovider $(WITH_CORE) --durations=5

# The lowest versions that pyproject.toml allows, of what the core needs.
LOWEST ?= $(shell .ci/python 3.12 3.11)
lowest:
	rm -rf $(VENV)-lowest
	$(LOWEST) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet $$($(LOWEST) .ci/lowest.py) pytest pytest-timeout hypothesis
	$(VENV)-lowest/bin/python -m pip install --quiet --no-deps --editable .
	$(VENV)-lowest/bin/python -m pytest -p no:cacheprovider $(filter-out tests/integrations,$(WITH_CORE)) tests/integrations/test_hub.py --durations=5
	rm -rf $(VENV)-lowest

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

# Every fault in full: about an hour. What it finds goes into docs/reliability.md.
faults: install
	$(BIN)/python benchmarks/faults/kills.py --json runs/faults/kills.json
	$(BIN)/python benchmarks/faults/soak.py --json runs/faults/soak.json
	$(BIN)/python benchmarks/faults/fuzz.py --json runs/faults/fuzz.json
	$(BIN)/python benchmarks/faults/tables.py runs/faults docs/reliability.md

# The questions of docs/results.md: what is on record is printed, what is not is trained, seven minutes of a core a model.
STUDIES ?= roles
ALL_STUDIES = roles transfer modalities faults subsets positions filling recipe law
study: install
	for name in $(STUDIES); do $(BIN)/python benchmarks/study/$$name.py || exit; done

# What needs GPUs and the data (docs/full_scale.md), a target each; DATA is the folder of the data, MORE any further options.
# DRY=true says what each would come to, and writes nothing; full-bench takes minutes and has no such plan.
DRY ?= false
CHECKPOINT ?= runs/mmearth64/checkpoint
BUDGET ?= --size small --tiles 100000 --steps 20000 --batch 256
full-mmearth100k full-mmearth64: full-%: install
	$(BIN)/multimae-eo pretrain --config configs/pretrain_$*.yaml --data.root "$(DATA)" --dry-run $(DRY) $(MORE)
full-geobench: install
	$(BIN)/multimae-eo geobench --config configs/geobench.yaml --checkpoint "$(CHECKPOINT)" --data-root "$(DATA)" --dry-run $(DRY) $(MORE)
full-studies: install
	for name in $(ALL_STUDIES); do \
		$(BIN)/python benchmarks/study/$$name.py --accelerator gpu --jobs 1 $(BUDGET) \
			--records runs/study/records $(if $(filter true,$(DRY)),--dry-run) $(MORE) || exit; done
full-bench: install
	$(BIN)/python benchmarks/step.py --batch 512 --json runs/bench_gpu/step.json $(MORE)

clean:
	rm -rf $(VENV) $(VENV)-audit $(VENV)-bench $(VENV)-core $(VENV)-lowest $(VENV)-terratorch $(VENV)-torchgeo site dist
