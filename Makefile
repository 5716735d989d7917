# Everything a person does with this repository. Each target first sets up .venv, and again only when pyproject.toml or
# constraints.txt changed: their checksum is the name of the stamp.

PYTHON ?= python3
PRESET ?= quick
CATALOG ?= bazaar
SEEDS ?= 0
CLUSTER ?=
OUT ?= reports/$(PRESET)$(if $(filter-out bazaar,$(CATALOG)),-$(notdir $(patsubst %/,%,$(CATALOG:hub:%=%))))

BIN := .venv/bin
STAMP := .venv/.installed-$(firstword $(shell cat pyproject.toml constraints.txt | cksum))
PAGE := notebooks/05_query_explorer.ipynb
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
# a photograph to search by may be larger than the 10 MiB that Jupyter lets one message hold; it would drop the connection
UPLOADS := tornado_settings="{'websocket_max_message_size': 41943040}"
# whoever left the page gives his kernel back after two minutes
LEAVERS := --MappingKernelManager.cull_idle_timeout=120 --MappingKernelManager.cull_interval=30
# the page draws no figures, and plotly's five megabytes would come before its first tile
LIGHT := --VoilaConfiguration.extension_denylist=jupyterlab-plotly --VoilaConfiguration.extension_denylist=anywidget
# kernels and extensions of another installation must not come in
unexport JUPYTER_PATH

.PHONY: help lab explore reproduce test bench check

help:
	@echo "make lab        JupyterLab with the notebooks"
	@echo "make explore    the query explorer as a page of its own (Voila)"
	@echo "make reproduce  run all notebooks, write the report to OUT=$(OUT)"
	@echo "                PRESET=smoke|quick|full|pretrained  CATALOG=bazaar|bazaar-zh|<folder>|hub:<name>  SEEDS=n (0: as the preset says)  CLUSTER=<address of a Dask scheduler>"
	@echo "make test       unit tests, then notebooks and browser"
	@echo "make bench      time each stage on this machine, and against peers; ratios in reports/bench"
	@echo "make check      lint, format, imports between rooms, types, notebooks without outputs"

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit("makelib needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f .venv/.installed-* && touch $@

lab: $(STAMP)
	JUPYTER_CONFIG_PATH="$(CURDIR)/makelib/workbook/templates" $(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks --ServerApp.$(UPLOADS)

explore: $(STAMP)
	@JUPYTER_PATH="$(CURDIR)/makelib/workbook/templates" $(BIN)/python -m makelib.workbook.visitors $(PAGE) --template=explorer \
	  --TagRemovePreprocessor.remove_cell_tags=chapter --Voila.$(UPLOADS) $(LEAVERS) $(LIGHT) --show_tracebacks=True $(PAGE)

reproduce: $(STAMP)
	@$(BIN)/python -m makelib reproduce --preset "$(PRESET)" --catalog "$(CATALOG)" --seeds "$(SEEDS)" --out "$(OUT)" $(if $(CLUSTER),--cluster "$(CLUSTER)")

test: $(STAMP)
	OMP_NUM_THREADS=1 MAKELIB_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m "not notebooks and not browser"
	$(BIN)/pytest -vv --durations=8 --timeout 900 -m "notebooks or browser"

bench: $(STAMP)
	@$(BIN)/python -c "import open_clip" 2>/dev/null || $(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[peers]'
	$(BIN)/python -m makelib bench --preset smoke

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy --no-error-summary
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --verify --keep-id \
	  --extra-keys "metadata.papermill cell.metadata.papermill metadata.language_info.version" $(NOTEBOOKS))
