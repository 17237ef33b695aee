# `make serve` and `make test` need nothing before them: they create .venv and install what they use, once.

SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := pyproject.toml constraints.txt .ci/install-torch
TORCH ?= auto
export TORCH

.DEFAULT_GOAL := help
.PHONY: help serve test campaign soak check train bench docs docker constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.serve ## run the service on http://localhost:8000 (SERVE_ARGS="--port 9000", or VAE_* variables)
	@$(BIN)/vae serve $(SERVE_ARGS)

test: $(VENV)/.dev ## run the tests, without the slow ones (PYTEST_ARGS="-k batching", or "-m slow")
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

campaign: $(VENV)/.dev ## run the long tests and write their figures into docs/reliability.md (ROW="json files")
	$(BIN)/python -m tests.campaign $(ROW)

soak: $(VENV)/.dev ## load a server with everything at once for 75 minutes (MINUTES=75); the report is soak.json
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),75) $(SOAK_ARGS)

check: $(VENV)/.dev ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

train: $(VENV)/.serve ## train a model (TRAIN_ARGS="--preset quick"; see docs/training.md)
	@$(BIN)/vae train $(TRAIN_ARGS)

bench: $(VENV)/.serve ## measure speed beside other servers (BENCH_ARGS="--quick"; see docs/performance.md)
	@$(BIN)/python -m bench.run $(BENCH_ARGS)

docs: $(VENV)/.dev ## write what the pages' commands print and draw into the pages, after a change of weights or formats
	@$(BIN)/python tests/write_pages.py

docker: ## build the image vae-service:cpu, or vae-service:cuda with TORCH=cuda
	docker build --build-arg TORCH=$(TORCH:auto=cpu) --tag vae-service:$(TORCH:auto=cpu) \
	  --label org.opencontainers.image.revision="$$(git rev-parse HEAD 2>/dev/null)" .

constraints: ## rewrite constraints.txt with the newest versions (all but torch), in a fresh environment
	rm -rf $(VENV)
	$(MAKE) $(BIN)/python
	.ci/install-torch $(PIP)
	$(PIP) install --quiet --editable '.[dev]'
	{ sed -n '/^#/p' constraints.txt; $(PIP) freeze --exclude-editable | sed 's/+.*//'; } > $(VENV)/new
	mv $(VENV)/new constraints.txt
	touch $(VENV)/.serve $(VENV)/.dev

clean: ## remove the environment and everything else that make can make again
	rm -rf $(VENV) .bench dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find app model tests bench -name __pycache__ -prune -exec rm -rf {} +

# ------------------------------------------------------------------- the environment, renewed when its inputs change

$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    "$$python" -m venv --clear $(VENV) && exit 0; \
	    rm -rf $(VENV); \
	    echo "make: '$$python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; \
	  fi; \
	done; \
	echo "make: Python 3.11 or newer is needed, and none of these is:" \
	  "$(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11);" \
	  "name one with make PYTHON=/path/to/python" >&2; exit 1

$(VENV)/.serve: $(INSTALL) | $(BIN)/python
	.ci/install-torch $(PIP)
	$(PIP) install --quiet -c constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(INSTALL) | $(BIN)/python
	.ci/install-torch $(PIP)
	$(PIP) install --quiet -c constraints.txt --editable '.[dev]'
	@touch $(VENV)/.serve $@
