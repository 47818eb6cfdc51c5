# Two commands on a fresh clone: `make demo` and `make test`.  Each makes the environment it needs, once.
#
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu make demo    where your default index offers only CUDA builds
#   LOCKED=no make demo    the newest that pyproject.toml allows, unchecked, in place of the versions and hashes of deploy/lock

PYTHON ?= python3
TORCH_INDEX ?=
LOCKED ?= yes
VENV := .venv
OUTSIDE := $(VENV)-outside
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
HASHED := $(PIP) --require-hashes --no-deps --only-binary :all:
TORCH := 'torch>=2.9.1,$(if $(filter aarch64,$(shell uname -m)),<2.10,<2.14)'
HASHED_OUTSIDE := $(HASHED:$(VENV)/bin/%=$(OUTSIDE)/bin/%)
torch = $(1) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r deploy/lock/torch-cpu.txt || \
  { test $$(uname -m) = x86_64 && echo "torch's CPU build could not be had (see above): taking PyPI's CUDA build, several GB" && \
    $(1) -r deploy/lock/torch-cuda.txt; }
PAI := $(if $(filter x86_64,$(shell uname -m)),pai)
comma := ,

.PHONY: demo test test-long test-ops lint bench bench-secagg bench-flower bench-sim bench-scale bench-dendrites bench-search bench-choice bench-serve \
        bench-speed bench-million bench-metrics chaos fuzz lock bundle dashboards screenshots licences check-aarch64 audit clean

demo: $(VENV)/.runtime
	@$(RUN) deploy/demo/demo.py

test: $(VENV)/.dev $(OUTSIDE)/.made
	$(RUN) -m pytest -m "not long" -n 2 --dist loadfile --no-loadscope-reorder

# Whole runs, outages and crashes in real processes, 20 seconds and more each: as much again.
test-long: $(VENV)/.dev $(OUTSIDE)/.made
	$(RUN) -m pytest -m long -n 2 --dist loadfile --no-loadscope-reorder

# What deploy/ ships, with the programs it is for (see .ci/run); here a test that lacks its program fails.
test-ops: $(VENV)/.dev
	NEXUS_OPS_NO_SKIPS=1 $(RUN) -m pytest -m ops -n 2 --dist loadfile tests/ops

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

chaos: $(VENV)/.dev
	$(RUN) -m tests.chaos.chaos --seconds $(or $(SECONDS),1800) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.dev
	@if $(RUN) -c 'import atheris' 2>/dev/null; then \
	  $(RUN) -m tests.fuzz.atheris_run $(or $(TARGET),all) --seconds $(or $(SECONDS),1000); \
	else \
	  echo "atheris is not installed ($(PIP) atheris): hypothesis tries $(or $(EXAMPLES),3000) inputs for each decoder"; \
	  NEXUS_FUZZ_EXAMPLES=$(or $(EXAMPLES),3000) $(RUN) -m pytest tests/fuzz; \
	fi

bench: $(VENV)/.dev
	$(RUN) -m tests.bench.server
	$(RUN) -m tests.bench.quality

bench-secagg: $(VENV)/.dev
	$(RUN) -m tests.bench.secagg_cpu
	$(RUN) -m tests.bench.rounds

bench-serve: $(VENV)/.dev
	$(RUN) -m tests.bench.serve

bench-flower: $(VENV)/.dev
	$(RUN) -m tests.bench.flower_stock

bench-sim: $(VENV)/.dev
	$(RUN) -m tests.bench.simulation

bench-dendrites: $(VENV)/.dev
	nice $(RUN) -m tests.bench.dendrites

bench-search: $(VENV)/.dev
	nice $(RUN) -m tests.bench.search

bench-choice: $(VENV)/.dev
	nice $(RUN) -m tests.bench.choice

bench-metrics: $(VENV)/.dev
	$(RUN) -m tests.bench.metrics

bench-scale: $(VENV)/.dev
	$(RUN) -m tests.bench.scale

bench-speed: $(VENV)/.dev $(OUTSIDE)/.made
	$(RUN) -m tests.bench.speed

bench-million: $(VENV)/.dev
	OPENBLAS_NUM_THREADS=1 $(RUN) -m tests.bench.million

lock: $(VENV)/.runtime
	$(RUN) deploy/lock/lock.py $(if $(UPGRADE),--upgrade)

bundle: $(VENV)/.dev
	$(RUN) deploy/bundle/bundle.py $(MACHINE:%=--machine %) $(FOR_PYTHON:%=--python %) $(SIGN:%=--sign %)

dashboards: $(VENV)/.dev
	$(RUN) deploy/grafana/generate.py

screenshots: $(VENV)/.dev
	$(RUN) -m tests.screenshots

licences: $(VENV)/.runtime
	$(RUN) deploy/lock/licences.py

check-aarch64: $(VENV)/.dev
	$(RUN) deploy/lock/check_aarch64.py

audit: $(VENV)/.runtime
	$(VENV)/bin/uv audit --frozen

$(VENV)/.runtime: pyproject.toml $(wildcard deploy/lock/*.txt)
	@echo "making $(VENV): about 0.5 GB to download and 1.6 GB of disk with a CPU build of torch;"
	@echo "where your index offers only CUDA builds of torch it is several GB more (see TORCH_INDEX in the README)"
	@$(PYTHON) -c 'import sys; sys.exit("NEXUS needs Python 3.11 or later, this is " + sys.version.split()[0] + "; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import sys; sys.exit("deploy/lock covers Python 3.11 to 3.14; set PYTHON=python3.13, or LOCKED=no" if "$(LOCKED)" == "yes" and sys.version_info >= (3, 15) else 0)'
	@$(PYTHON) -m venv $(VENV)
ifeq ($(LOCKED),yes)
	@$(HASHED) -r deploy/lock/build.txt
	@$(call torch,$(HASHED))
	@$(HASHED) -r deploy/lock/server.txt -r deploy/lock/client.txt $(PAI:%=-r deploy/lock/%.txt) -r deploy/lock/demo.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $(VENV)/.locked
else
	@rm -f $(VENV)/.locked
	@$(PIP) 'pip>=25.1,<27'
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@$(PIP) --editable '.[server,client]' --group demo
	@$(if $(PAI),$(PIP) --no-deps "perforatedai==3.2.9; python_version < '3.13'" && $(PIP) 'pandas>=2.2$(comma)<4')
endif
	@touch $@

# Where exported folders are loaded, and `serve` is called, as by somebody who has no NEXUS.
$(OUTSIDE)/.made: $(VENV)/.runtime deploy/lock/outside.txt
	@$(PYTHON) -m venv $(OUTSIDE)
	@$(HASHED_OUTSIDE) -r deploy/lock/build.txt
	@$(call torch,$(HASHED_OUTSIDE))
	@$(HASHED_OUTSIDE) -r deploy/lock/outside.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
ifeq ($(LOCKED),yes)
	@$(HASHED) -r deploy/lock/dev.txt
else
	@$(PIP) --group dev
endif
	@touch $@

clean:
	rm -rf $(VENV) $(OUTSIDE) .demo .bench .fuzz .aarch64
