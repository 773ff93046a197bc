# make quickstart   install what is missing, then the whole method on the embedded models
# make test         install what is missing, then the tests (under 10 minutes; `make e2e` adds the slow ones)
# make check        formatting, lint, types, layers        make bench   the benchmarks        make lock   renew the lock
#
# Settings: PYTHON (3.11 or newer), TORCH_BACKEND (with uv: cpu, auto, cu130, ...), VENV.

SHELL         := /bin/bash -o pipefail
PYTHON        ?= python3
VENV          ?= .venv
TORCH         := 2.13.0
TORCH_BACKEND ?= cpu
BIN           := $(VENV)/bin
STAMP         := $(VENV)/.rba-installed
UV            := $(shell command -v uv)

.PHONY: dev assets check test quickstart e2e bench lock clean
.DEFAULT_GOAL := dev

dev: $(STAMP)

# Torch first, by version, because its build (CPU or a CUDA) is the machine's matter; then the lock, which holds none
# of it; then the package itself, built by the hatchling of the lock, so that nothing is fetched behind the lock's back.
$(STAMP): requirements.lock pyproject.toml
ifeq ($(UV),)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rba needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==$(TORCH)
	$(BIN)/python -m pip install --quiet --no-deps --only-binary :all: -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
else
	test -x $(BIN)/python || uv venv --quiet --python '>=3.11' $(VENV)
	uv pip install --quiet --python $(BIN)/python --torch-backend $(TORCH_BACKEND) torch==$(TORCH) || \
	  { echo "torch's own index is out of reach: taking the default build"; \
	    uv pip install --quiet --python $(BIN)/python torch==$(TORCH); }
	uv pip install --quiet --python $(BIN)/python --no-deps --only-binary :all: -r requirements.lock
	uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
endif
	touch $@

# What is in the cache already costs nothing; the first time about 500 MB come, sizes and licences shown before.
assets: dev
	$(BIN)/rba assets fetch

quickstart: assets
	$(BIN)/rba run quickstart

# A process a core with one thread each: the tests' models are tiny, and two threads that meet after each product lose.
test: assets
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" --numprocesses logical --maxprocesses 4 --dist loadfile

e2e: assets
	$(BIN)/pytest -m "slow or not slow"

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Without smoke.py, which wants a trained run: `rba run laptop`, then `python benchmarks/smoke.py`.
bench: assets
	failed=; for file in $(filter-out benchmarks/smoke.py,$(wildcard benchmarks/*.py)); do echo "== $$file"; $(BIN)/python $$file || failed="$$failed $$file"; done; \
	  test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# Universal: one lock for every platform and Python from 3.11 on. Torch and what only it brings (triton, nvidia-*,
# cuda-*) are cut out: see above. Needs uv, which `pip install uv` puts into the environment.
lock:
	$(or $(UV),$(BIN)/uv) pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --constraints <(echo torch==$(TORCH)) --no-header --no-emit-index-url --no-annotate --quiet \
	  --output-file requirements.lock.new > /dev/null
	( echo '# Made by: make lock'; awk '/^[^ ]/ { cut = /^(torch|triton|nvidia-|cuda-)/ } !cut' requirements.lock.new ) \
	  > requirements.lock
	rm requirements.lock.new

clean:
	rm -rf $(VENV) dist build
