# Every target sets itself up in .venv; nothing has to be installed by hand but Python 3.11 or newer.
PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
PORT ?= 8866
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: study lab app site gallery test test-all bench lint chromium clean

study: .venv/.study  ## the four studies, live, at tier quick: make study ARGS="--data imagefolder:DIR"
	$(BIN)/simmim-lite study all --tier quick $(ARGS)

lab: .venv/.study .venv/.lab  ## JupyterLab on your own copies of the notebooks, with the table of contents
	JUPYTERLAB_WORKSPACES_DIR=.venv/workspaces $(BIN)/simmim-lite lab -- $(ARGS)

app: .venv/.app  ## the mask lab alone, as a web page with a kernel behind it, for this machine; Ctrl-C ends it
	@echo "the mask lab: http://localhost:$(PORT)/ (where that port is taken: make app PORT=8867)"
	@JUPYTER_PATH=notebooks/app $(BIN)/voila notebooks/app/mask_lab.ipynb --template=lab_alone --no-browser \
		--port=$(PORT) --Voila.port_retries=0 --Voila.log_level=ERROR \
		--Voila.tornado_settings='{"allow_remote_access": False}' $(ARGS)

site: .venv/.site  ## an offline site of executed notebooks, gallery, API and the mask lab; prints the path of its first page
	$(BIN)/python tools/build_site.py $(ARGS)

gallery: .venv/.test chromium  ## the README's figure and one picture a study, from the shipped records
	$(BIN)/python tools/build_site.py --gallery gallery $(ARGS)
	$(BIN)/python tools/headless.py gallery/lab.png

# Where no browser can be had, the line says how to get one, and everything else is tested before the target fails.
test: .venv/.test  ## the tests, in about nine minutes
	@$(MAKE) --no-print-directory chromium \
		|| { $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow and not browser"; exit 2; }
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

test-all: .venv/.test chromium  ## the tests that take minutes too
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

bench: .venv/.test  ## speed on this machine, as ratios
	$(BIN)/python tools/bench.py $(ARGS)

lint: .venv/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf .venv build _site *.egg-info

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
	@touch $@ .venv/.study .venv/.app .venv/.site

.venv/.app .venv/.site: .venv/.%: pyproject.toml | .venv/bin/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e ".[$*]"
	@touch $@ .venv/.study

# A workspace of its own, made once: what the reader rearranges in it stays, and their other workspaces are left alone.
.venv/.lab: | .venv/.study
	@printf '%s\n' '$(WORKSPACE)' > .venv/course.json
	@JUPYTERLAB_WORKSPACES_DIR=.venv/workspaces $(BIN)/jupyter lab workspaces import .venv/course.json
	@touch $@

TOC := "@jupyterlab/toc:plugin"
LEFT := {"collapsed":false,"visible":true,"current":$(TOC),"widgets":["filebrowser","running-sessions",$(TOC)]}
WORKSPACE := {"data":{"layout-restorer:data":{"left":$(LEFT),"relativeSizes":[0.2,0.8,0]}},"metadata":{"id":"course"}}

# The browser tests need a Chromium or Chrome on PATH.
FIND_CHROMIUM := command -v chromium || command -v chromium-browser || command -v google-chrome || ls "/Applications/Google Chrome.app"
chromium:
	@{ $(FIND_CHROMIUM); } > /dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null \
		&& apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu > /dev/null; } \
		|| { echo "the browser tests need Chromium or Chrome on PATH: apt-get install chromium, or brew install --cask google-chrome"; exit 2; }
