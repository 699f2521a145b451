# What a newcomer types: `make demo` and `make test`. Everything else is for people who change the code.
# Needs Python 3.11 or newer, git, make and a package index. Nothing is fetched while training or testing.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first interpreter that is new enough; override with `make PYTHON=/path/to/python3`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
VENV10 := .venv-trl10
VENV112 := .venv-trl112
VENVDS := .venv-deepspeed
BIN := $(VENV)/bin

# torch on two cores: more threads than cores make a tiny model slower. Models and data come from this repository, never a hub.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Installs $(2) into the environment $(1) under the constraints $(3), one short line per package.
# The grep drops pip's remark about configured package folders that do not exist; errors stay.
pip_install = $(1)/bin/python -m pip install --progress-bar off -c $(3) $(2) 2> >(grep -v 'Location .* is ignored' >&2) \
	| awk '/^(Collecting|Processing) / { n = split($$2, path, "/"); split(path[n], p, /[<>=;!~\[(]|-[0-9]/); \
	         if (path[n] != "main" && p[1] != last) { last = p[1]; printf "    %s\n", p[1]; fflush() } } \
	       /^Installing collected/ { n = split($$0, p, ","); printf "    unpacking %d packages ...\n", n; fflush() }'

.PHONY: help demo test test-trl-1.0 test-trl-1.12 slow lint types imports rules-check schemas docs docs-check screenshot clinic bench wheel-check ci clean

help:  ## This list.
	@echo "make demo   train a tiny model with two planted faults and watch them being reported"
	@echo "make test   run the tests"
	@echo
	@grep -hE '^[a-zA-Z0-9._-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{ printf "  %-14s %s\n", $$1, $$2 }'

# ---- environments -----------------------------------------------------------------------------------------------------
# A stamp is written only after its step succeeded, so an interrupted `make` takes up where it broke off.

$(VENV)/.created $(VENV10)/.created $(VENV112)/.created:
	@test -n "$(PYTHON)" || { echo "trainvitals needs Python 3.11 or newer; none found. Try: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "==> creating $(@D) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(@D)
	@touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt
	@echo "==> installing trainvitals, torch and TRL into $(VENV) (once; a few minutes)"
	@$(call pip_install,$(VENV),-e '.[trl]',constraints.txt)
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "==> installing the development tools into $(VENV) (once)"
	@$(call pip_install,$(VENV),-e '.[trl$(comma)dev]',constraints.txt)
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@echo "==> installing what the benchmarks compare with into $(VENV) (once)"
	@$(call pip_install,$(VENV),-e '.[trl$(comma)dev$(comma)bench]',constraints.txt)
	@touch $@

$(VENV10)/.dev: $(VENV10)/.created pyproject.toml constraints-trl-1.0.txt
	@echo "==> installing TRL 1.0.0 and transformers 4.57 into $(VENV10) (once; a few minutes)"
	@$(call pip_install,$(VENV10),-e '.[trl]' pytest pytest-xdist hypothesis,constraints-trl-1.0.txt)
	@touch $@

$(VENV112)/.dev: $(VENV112)/.created pyproject.toml constraints-trl-1.12.txt
	@echo "==> installing TRL 1.12.0, the last with PPO, into $(VENV112) (once; a few minutes)"
	@$(call pip_install,$(VENV112),-e '.[trl]' pytest pytest-xdist hypothesis requests aiohttp,constraints-trl-1.12.txt)
	@touch $@

# On top of $(VENV), whose packages it sees, and not in it: wherever DeepSpeed is installed, accelerate imports it into every trainer, which takes
# two seconds and prints a line on stdout. There is no wheel; pip makes one from its source in seconds, without a compiler.
$(VENVDS)/.dev: $(VENV)/.dev
	@echo "==> installing DeepSpeed into $(VENVDS) (once)"
	@$(BIN)/python -m venv --clear $(VENVDS)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > \
	    "$$($(VENVDS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_below.pth"
	@$(call pip_install,$(VENVDS),deepspeed,constraints.txt)
	@touch $@

comma := ,

# ---- for everybody ----------------------------------------------------------------------------------------------------

demo: $(VENV)/.demo  ## Train a tiny model with two planted faults; live warnings, end block, where things lie.
	@echo "==> training a tiny model with TRL's GRPOTrainer, with two planted faults (under a minute)"
	@$(BIN)/trainvitals demo $(ARGS)

test: $(VENV)/.dev  ## The tests (real training longer than a few seconds is in `make slow`).
	@$(BIN)/python -m pytest -m 'not slow' -n 2 $(ARGS)

# ---- for people who change the code -----------------------------------------------------------------------------------

slow: $(VENV)/.dev $(VENVDS)/.dev  ## Real training: silent when healthy, planted faults, several processes, whole commands; the rules' mutants.
	@# Mutants rule by rule, then files in their order: the long one that judges every recording would come last otherwise, on one core.
	@$(BIN)/python -m pytest -m slow -n 2 tests/rules
	@$(BIN)/python -m pytest -m 'slow and not alone' -n 2 --dist loadfile --no-loadscope-reorder --durations=10 --ignore tests/rules $(ARGS)
	@# Several processes on two cores keep no exact time: what fails is tried once more, and must pass then.
	@$(VENVDS)/bin/python -m pytest -m alone tests/suite/test_ranks.py tests/clinic/test_faults_ranks.py $(ARGS) || \
	    $(VENVDS)/bin/python -m pytest -m alone --last-failed tests/suite/test_ranks.py tests/clinic/test_faults_ranks.py $(ARGS)

test-trl-1.0: $(VENV10)/.dev  ## The integrations and every trainer against TRL 1.0.0 and transformers 4.57.
	@# Left out: arithmetic on made-up numbers, with the same torch and numpy as in $(VENV).
	@$(VENV10)/bin/python -m pytest -m 'not slow' -n 2 --ignore tests/integrations/test_text_slope.py --ignore tests/integrations/test_copies.py \
	    tests/integrations tests/suite $(ARGS)

test-trl-1.12: $(VENV112)/.dev  ## Every trainer against TRL 1.12.0, the last version with PPO.
	@# With the faults of the trainers that later versions do not have; the others of these files run in `make slow`. Long ones first.
	@$(VENV112)/bin/python -m pytest -m 'not slow or dropped' -n 2 tests/clinic/test_faults_ppo.py tests/clinic/test_faults_more.py tests/suite $(ARGS)

lint: $(VENV)/.dev  ## ruff.
	@$(BIN)/ruff check .

types: $(VENV)/.dev  ## mypy, strict on src.
	@$(BIN)/mypy

imports: $(VENV)/.dev  ## Who may import whom (DESIGN section 3).
	@$(BIN)/lint-imports

rules-check: $(VENV)/.dev  ## Every rule against its own cases, then against its mutants.
	@$(BIN)/trainvitals rules test
	@$(BIN)/trainvitals rules mutate

schemas: $(VENV)/.dev  ## Write schemas/*.schema.json from the models.
	@$(BIN)/python -m trainvitals.schemas --write

docs: $(VENV)/.dev  ## Write the generated pages: rules, signals, command line.
	@$(BIN)/python tools/gen_docs.py

docs-check: $(VENV)/.dev  ## Fail when a schema or a generated page is stale.
	@$(BIN)/python -m trainvitals.schemas --check
	@$(BIN)/python tools/gen_docs.py --check

screenshot: $(VENV)/.dev  ## Run the demo and save what it prints as docs/demo.svg.
	@$(BIN)/python tools/screenshot.py

clinic: $(VENV)/.dev  ## Judge the clinic's recordings with today's rules and write docs/benchmark.md (no training).
	@$(BIN)/python -m tests.clinic.ward report

bench: $(VENV)/.bench  ## Benchmarks as ratios, written to docs/benchmarks.md.
	@$(BIN)/python tests/benchmarks/bench.py --write $(ARGS)

wheel-check: $(VENV)/.dev  ## Build the wheel and use it in a clean environment without torch.
	@$(BIN)/python tools/wheel_check.py

ci:  ## Everything CI runs.
	@bash .ci/run

clean:  ## Remove environments, caches and build products.
	rm -rf $(VENV) $(VENV10) $(VENV112) $(VENVDS) build dist .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
