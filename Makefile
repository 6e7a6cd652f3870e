# WHEELS=DIR: everything comes from the wheels of that folder (docs/offline.md), with this machine's
# Python and no network. uv is one of them.
PYTHON ?= python3
ifdef WHEELS
# make splits names at spaces, also in a rule's prerequisites.
ifneq ($(words $(WHEELS))$(findstring ',$(WHEELS)),1)
$(error WHEELS is $(WHEELS): make takes no name with a space or a quote in it. Rename the folder, or make a link to it)
endif
override WHEELS := $(patsubst ~/%,$(HOME)/%,$(strip $(WHEELS)))
UV := .venv/bin/uv
RUN := $(UV) run --no-sync --offline
else
# uv is used where it is, and fetched into .uv/ where it is not.
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .uv/bin/uv)
RUN := $(UV) run --frozen
endif

# Images of Python set it, and then each process compiles all of Megatron anew: most of its start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-fast test-room test-te test-newest test-oldest test-gpu test-slurm gpu-check \
	image-check wheelhouse-check soak audit-validation sweep-check evidence evidence-gpu layouts export-full-size \
	fuzz lint measure-prepare measure-checks measure-start newer-megatron
.DEFAULT_GOAL := quickstart

quickstart: $(UV)  ## the whole chain on this machine, with or without a GPU
	$(RUN) --no-dev tst-megatron quickstart

# A wheel for this Python and torch: what `make test-te` built, or that of a folder beside the checkout.
TE_WHEEL ?= $(firstword $(wildcard .te/wheels/*.whl ../shared/wheels/transformer_engine_torch-*.whl))

test: lint  ## everything that CI runs
	$(RUN) pytest -n 2 --dist loadfile --ignore tests/te
ifneq ($(TE_WHEEL),)
	$(MAKE) --no-print-directory test-te
else
	@echo 'skipped: tests/te, since TE_WHEEL names no wheel of transformer-engine-torch; make test-te builds one'
endif

test-te: $(UV)  ## Transformer Engine's layers without a GPU; TE_WHEEL=FILE, or the first time builds one
	tools/test_te.sh $(TE_WHEEL)

test-newest: $(UV)  ## all tests with the newest of every package; TESTS='PYTEST ARGUMENTS' are some
	tools/test_versions.sh newest $(TESTS)

test-oldest: $(UV)  ## all tests with the lower bounds of pyproject.toml
	tools/test_versions.sh oldest $(TESTS)

newer-megatron: $(UV)  ## whether there is a newer Megatron-Core, and which names here it would touch
	$(RUN) python tools/newer_megatron.py

test-fast: $(UV)  ## no process groups and no Megatron, for the inner loop
	$(RUN) pytest -n 2 --dist loadfile tests/unit

# Folders of tests mirror the rooms of the package; those that do not are named here.
TESTS_OF_model := tests/kernels $(wildcard tests/distributed/test_*bag*.py tests/distributed/test_*loss*.py)
TESTS_OF_nodes := $(wildcard tests/distributed/test_preflight*.py)
TESTS_OF_megatron := $(wildcard tests/distributed/test_gloo*.py)
TESTS_OF_ROOM = $(filter-out tests/megatron tests/unit,$(wildcard tests/unit/$(ROOM) \
	tests/unit/test_$(ROOM).py tests/megatron/$(ROOM) tests/$(ROOM))) $(TESTS_OF_$(ROOM))

test-room: $(UV)  ## ROOM=data: the tests of one room of the package, those with Megatron too
	$(if $(and $(ROOM),$(strip $(TESTS_OF_ROOM))),,$(error ROOM is '$(ROOM)': name a room that has \
	tests, such as ROOM=data. CONTRIBUTING.md lists the rooms))
	$(RUN) pytest -n 2 --dist loadfile $(TESTS_OF_ROOM)

fuzz: $(UV)  ## 3,000 keys with values that nobody would mean; all that is accepted is built
	TST_FUZZ=$${TST_FUZZ:-3000} $(RUN) pytest -q tests/megatron/recipe/test_check_fuzz.py

test-gpu: $(UV)  ## what needs a CUDA device; skipped by `test` without one
	$(RUN) pytest -m gpu tests/gpu

test-slurm: $(UV)  ## every fault that a run on a cluster must survive, on a real Slurm; half an hour
	$(RUN) pytest tests/slurm/faults.py -s

# Over this machine's own packages: any wheels will do, and torch may be the machine's.
ifdef WHEELS
gpu-check:
	$(PYTHON) tools/gpu_check.py --wheels '$(WHEELS)' $(PARTS)
else
gpu-check: $(UV)  ## everything that needs one GPU: correctness, then speed; writes benchmarks/results
	$(RUN) python tools/gpu_check.py $(PARTS)
endif

image-check: $(UV)  ## the Dockerfile built for real and run by any user without a network, as root
	$(RUN) tools/image_check.sh

soak: $(UV)  ## 20 kills at random moments, with and without asynchronous saves; half an hour
	$(RUN) python tools/soak.py --kills 20 --folder runs/soak
	$(RUN) python tools/soak.py --kills 20 --seed 2 --folder runs/soak-async --async-save

audit-validation: $(UV)  ## known damage and pairs of seeds, audited: writes the tables of docs/audit.md
	$(RUN) python tools/audit_validation.py --folder runs/audit-validation

sweep-check: $(UV)  ## a sweep of 8 runs, killed twice, against the same runs alone; half an hour
	$(RUN) python tools/sweep_check.py --folder runs/sweep-check

evidence: $(UV)  ## the runs of tools/evidence/plan.yaml that have no record yet; ONLY=NAME,NAME
	$(RUN) python tools/evidence $(if $(ONLY),--only $(ONLY))

evidence-gpu: $(UV)  ## the same on one GPU (tools/evidence/gpu.yaml); MINUTES=9 ends after a slice
	$(RUN) python tools/evidence --gpu $(if $(ONLY),--only $(ONLY)) $(if $(MINUTES),--minutes $(MINUTES))

layouts: $(UV)  ## gradients of every parallel layout against one process; writes docs/layouts.md
	$(RUN) python tools/measure_layouts.py

export-full-size: $(UV)  ## 10B-A1B from checkpoint to Hugging Face format: 42 GB of disk, 10 minutes
	$(RUN) python tools/measure_export.py runs/export-full-size
	$(RUN) python tools/measure_export.py runs/export-modelopt --num-layers 2 --with-modelopt

wheelhouse-check:  ## collect all wheels, switch the network off, install from them, test: 15 GB of disk
	tools/wheelhouse_check.sh

measure-checks: $(UV)  ## what the checks of a checkpoint cost a start and a save; 3 GB of disk
	$(RUN) python tools/measure_checks.py runs/measure-checks

# BESIDE=CHECKOUT: another commit, in turns with this one.
measure-start: $(UV)  ## seconds of `check`; RECIPE=FILE is a recipe whose text is prepared
	$(RUN) python tools/measure_start.py $(RECIPE) $(if $(BESIDE),--beside $(BESIDE))

# MEGATRON_TOOL=FILE: tools/preprocess_data.py of Megatron-LM core_v0.19.0, which no package ships.
measure-prepare: $(UV)  ## tokens per second of data preparation; writes benchmarks/results
	$(RUN) python tools/measure_prepare.py $(if $(MEGATRON_TOOL),--megatron-tool $(MEGATRON_TOOL))

lint: $(UV)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) python tools/check_house.py
	$(RUN) hadolint Dockerfile

ifdef WHEELS
.venv/bin/uv: $(WHEELS)/requirements.txt
	$(PYTHON) tools/install_wheels.py .venv --wheels '$(WHEELS)' --editable .

$(WHEELS)/requirements.txt:
	@echo '$@ is not there. tools/wheelhouse.sh $(WHEELS) makes that folder, where there is a network'
	@false
endif

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/pip install --quiet uv
