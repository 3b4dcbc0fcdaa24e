# Each target is one `semiocity …` line that you could type yourself. `make` alone prints this list.
PYTHON  ?= python3
VENV    ?= .venv
UV      := $(VENV)/bin/uv
RECIPE  ?= shards/city.toml
RUN     ?= runs/demo
# Passed on: ARGS="--set resources.timeout_min=30 --dry-run"
ARGS    ?=
SEMIOCITY = $(VENV)/bin/semiocity

# Without compiled files the ranks of a training take 10 s each to import DeepSpeed.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help env login peers demo test soak lint bench lock doctor fetch fit image shards verify caption segment \
        duplicates view browse train generate evaluate report compare pipeline status \
        watch logs cancel retry tensorboard

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- environment

env: $(VENV)/.everything  ## a virtual environment with everything, from requirements.lock
login: $(VENV)/.login  ## the same for a login node alone: plans, submits and watches, no torch

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9

$(VENV)/.everything: $(UV) requirements.lock pyproject.toml
	$(UV) pip install --quiet --python $(VENV)/bin/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(VENV)/bin/python --no-deps --editable .
	@touch $@

$(VENV)/.login: $(UV) requirements.lock pyproject.toml
	$(UV) pip install --quiet --python $(VENV)/bin/python --constraint requirements.lock --editable .
	@touch $@

# Any environment will do for the verbs of a login node; an existing one is left as it is.
$(SEMIOCITY):
	$(MAKE) $(VENV)/.everything

# Tools that we are compared with, in environments of their own: some of them pin what ours must not.
PEERS = .peers
peers: $(UV)  ## other tools, for tests and benchmarks: export SEMIOCITY_PEERS=$(PEERS)/bin/python
	$(PYTHON) -m venv $(PEERS)
	$(UV) pip install --quiet --python $(PEERS)/bin/python --require-hashes -r bench/peers.lock
	$(UV) pip install --quiet --python $(PEERS)/bin/python --require-hashes --no-deps --target $(PEERS)/webdataset-0.2 \
	  -r bench/peers-webdataset-0.2.lock
	$(PYTHON) -m venv $(PEERS)/datatrove
	$(UV) pip install --quiet --python $(PEERS)/datatrove/bin/python --require-hashes -r bench/peers-datatrove.lock

lock:  ## write requirements.lock and containers/requirements.lock anew
	$(UV) pip compile pyproject.toml --all-extras $(LOCK_FLAGS) -o requirements.lock
	$(UV) pip compile pyproject.toml --extra train --extra ui -c requirements.lock $(LOCK_FLAGS) \
	  -o containers/requirements.lock
	$(UV) pip compile pyproject.toml --extra data --extra ui -c requirements.lock $(LOCK_FLAGS) \
	  -o containers/requirements-cpu.lock
LOCK_FLAGS = --quiet --generate-hashes --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links \
  --no-annotate --custom-compile-command "make lock"

# ---- the whole of it

demo: env  ## packed shards, captions, masks, a trained model, scores and a page (RECIPE=… ROOT=… for your own images)
	$(SEMIOCITY) demo --recipe $(RECIPE) $(if $(ROOT),--root $(ROOT)) $(ARGS)

# Files of tests are shared out whole (tests/conftest.py): their fixtures are made once each.
WORKERS ?= 2
test: env  ## every test, in under 15 minutes on 2 cores
	$(VENV)/bin/python -m pytest -m "not soak" -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

soak: env  ## the hours-long versions; writes docs/soak.md
	$(VENV)/bin/python -m pytest -m soak --soak-report docs/soak.md $(ARGS)

lint: env  ## ruff and mypy over everything
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy semiocity bench
	@# Test folders one by one: each has a conftest.py and helpers of its own, as pytest sees them.
	for folder in tests tests/*/; do \
	  ls $$folder/*.py >/dev/null 2>&1 || continue; $(VENV)/bin/mypy $$folder/*.py || exit 1; \
	done

bench: env  ## each claim against a peer in the same run; writes docs/benchmarks.md
	$(VENV)/bin/python bench/all.py

# ---- step by step

doctor: $(SEMIOCITY)  ## can it work here? On the login node; ARGS=--node asks a compute node, JOB=… a job
	$(SEMIOCITY) doctor $(JOB) $(ARGS)

fetch: $(SEMIOCITY)  ## weights that JOB names (or MODEL=…) to the shared folder, for nodes without internet
	$(SEMIOCITY) fetch $(or $(MODEL),$(JOB)) $(ARGS)

fit: $(SEMIOCITY)  ## memory, time and GPU-hours of JOB, before it is submitted
	$(SEMIOCITY) fit $(or $(JOB),jobs/train-sdm.toml) $(ARGS)

image: $(SEMIOCITY)  ## the Apptainer image that jobs run in
	$(SEMIOCITY) image $(ARGS)

shards: $(SEMIOCITY)  ## pack RECIPE into tar shards
	$(SEMIOCITY) pack $(RECIPE) $(ARGS)

verify: $(SEMIOCITY)  ## re-read DATASET and name every fault
	$(SEMIOCITY) verify $(or $(DATASET),data/city) $(ARGS)

caption: $(SEMIOCITY)  ## add the column `caption` (JOB=jobs/caption.toml)
	$(SEMIOCITY) caption $(or $(JOB),jobs/caption.toml) $(ARGS)

segment: $(SEMIOCITY)  ## add the column `mask` (JOB=jobs/segment.toml)
	$(SEMIOCITY) segment $(or $(JOB),jobs/segment.toml) $(ARGS)

duplicates: $(SEMIOCITY)  ## equal and near-equal pictures of DATASET, and splits that keep them together
	$(SEMIOCITY) hash jobs/hash.toml --wait $(if $(DATASET),--set dataset=$(DATASET)) $(ARGS)
	$(SEMIOCITY) duplicates jobs/duplicates.toml --wait $(if $(DATASET),--set dataset=$(DATASET)) $(ARGS)

view: $(SEMIOCITY)  ## choose rows by a filter, for trainings to name (VIEW=views/night.toml)
	$(SEMIOCITY) view $(or $(VIEW),views/night.toml) $(ARGS)

browse: $(SEMIOCITY)  ## a gallery of DATASET on loopback, with the ssh line that reaches it
	@$(SEMIOCITY) browse $(or $(DATASET),data/city) $(ARGS)

train: $(SEMIOCITY)  ## train, or go on training (JOB=jobs/train-sdm.toml)
	$(SEMIOCITY) train $(or $(JOB),jobs/train-sdm.toml) $(ARGS)

generate: $(SEMIOCITY)  ## images for held-out layouts (JOB=jobs/generate.toml)
	$(SEMIOCITY) generate $(or $(JOB),jobs/generate.toml) $(ARGS)

evaluate: $(SEMIOCITY)  ## scores of the generated images (JOB=jobs/evaluate.toml)
	$(SEMIOCITY) evaluate $(or $(JOB),jobs/evaluate.toml) $(ARGS)

report: $(SEMIOCITY)  ## one self-contained page about RUN
	$(SEMIOCITY) report $(RUN) $(ARGS)

compare: $(SEMIOCITY)  ## trainings beside each other (RUNS="runs/a runs/b", ARGS="--page compare.html")
	$(SEMIOCITY) compare $(RUNS) $(ARGS)

pipeline: $(SEMIOCITY)  ## many jobs as a graph, queued at once (PIPELINE=jobs/pipelines/city.toml)
	$(SEMIOCITY) pipeline $(or $(PIPELINE),jobs/pipelines/city.toml) $(ARGS)

watch: $(SEMIOCITY)  ## the status, drawn anew until nothing runs
	@$(SEMIOCITY) status --watch $(ARGS)

logs: $(SEMIOCITY)  ## the end of the log of RUN that matters: the failing task's first
	@$(SEMIOCITY) logs $(notdir $(RUN)) $(ARGS)

cancel: $(SEMIOCITY)  ## end what is queued or running of RUN
	$(SEMIOCITY) cancel $(notdir $(RUN)) $(ARGS)

retry: $(SEMIOCITY)  ## RUN's job again: what is missing
	$(SEMIOCITY) retry $(notdir $(RUN)) $(ARGS)

status: $(SEMIOCITY)  ## what is done, running, failed and missing
	@$(SEMIOCITY) status $(ARGS)

tensorboard: $(SEMIOCITY)  ## TensorBoard on loopback, with the ssh line that reaches it
	@$(SEMIOCITY) board $(ARGS)
