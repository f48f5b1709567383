# Needs make and Python 3.11 or later with pip and venv. Everything is made inside this folder.
PYTHON ?= python3
ARGS ?=

# Relative paths throughout: make cannot hold a path with a space in a target, and so the checkout may have one.
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help demo up test check format install lock clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## Start everything embedded and replay eleven months of flights (ARGS="--help" for options)
	@$(BIN)/python -m streams demo $(ARGS)

up: $(INSTALLED) ## Start everything embedded and wait for your own predictions
	@$(BIN)/python -m streams up $(ARGS)

test: $(INSTALLED) ## Run the whole test suite, a process for each core (ARGS="-n 0 -x tests/streams" for less)
	@$(BIN)/python -m pytest -n logical --dist worksteal $(ARGS)

check: $(INSTALLED) ## Lint, formatting, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(INSTALLED) ## Sort imports, fix what can be fixed, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(INSTALLED) ## Install what the lock file names, and the project, into .venv

lock: $(INSTALLED) ## Write requirements.lock anew (ARGS="--upgrade" for the newest of everything)
	$(BIN)/uv pip compile pyproject.toml --output-file requirements.lock --quiet \
		--all-extras --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --no-emit-index-url $(ARGS)

# Not the whole of .driftline: the passwords of docker-compose.yml are in .driftline/secrets.
clean: ## Remove all that was made here: environment, caches, the demo's leavings
	rm -rf $(addprefix .driftline/,clickhouse embedded-clickhouse detector logs lock tansu)
	rm -f monitor/_kernel.so
	rm -rf $(VENV) .peers .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage dist
	find monitor streams alerting tests -name __pycache__ -type d -exec rm -rf {} +

# The stamp goes first and comes back last: whatever an interrupt leaves half done is made anew by the next run.
# pip brings uv, with its hash from the lock, and uv the other hundred packages in a few seconds; where uv finds no
# way to the packages (it does not read pip's configuration), pip takes the long road.
$(INSTALLED): requirements.lock pyproject.toml hatch_build.py monitor/kernel.c monitor/counting.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Driftline needs Python 3.11 or later: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@if [ -e $@ ]; then rm $@; else rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); fi
	@echo "installing into $(VENV)"
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --offline --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
