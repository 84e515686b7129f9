# Every target sets itself up in .venv; nothing has to be installed by hand but Python 3.11 or newer.
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: study test test-all bench lint clean

study: .venv/.study  ## the four studies, live, at tier quick: make study ARGS="--data imagefolder:DIR"
	$(BIN)/simmim-lite study all --tier quick $(ARGS)

test: .venv/.test  ## the tests, in two minutes
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-all: .venv/.test  ## the tests that take minutes too
	$(BIN)/python -m pytest -n $(WORKERS)

bench: .venv/.test  ## speed on this machine, as ratios
	$(BIN)/simmim-lite bench $(ARGS)

lint: .venv/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf .venv build *.egg-info

.venv/bin/uv:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "simmim-lite needs Python 3.11 or newer: make PYTHON=python3.11 …"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# torch, torchvision and timm are resolved together: a torch from elsewhere breaks torchvision
.venv/.study: pyproject.toml | .venv/bin/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e .
	@touch $@

.venv/.test: pyproject.toml | .venv/bin/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e ".[dev]"
	@touch $@ .venv/.study
