# Two commands: `make demo` and `make test`. Both create the environment first; PYTHON says with what.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes that test at the same time, each with a Ray cluster of its own.
WORKERS ?= 2
INSTALLED := $(VENV)/.installed

.PHONY: help demo test lint unit install clean

help:
	@echo "make demo   build a toy registry, serve it on http://127.0.0.1:8000, say what to try"
	@echo "make test   lint, type-check and run all tests"
	@echo "make lint   ruff, mypy, import-linter"
	@echo "make unit   the tests that need no Ray cluster"
	@echo "make bench  measure, also other model servers, for about an hour; make bench-quick takes five minutes"
	@echo "make bench-generation  measure the engines of text generation, for some minutes"
	@echo "make clean  remove the environment, the demo and what the benchmarks built"

demo: $(INSTALLED)
	$(BIN)/registry-serve demo --serve

test: lint chromium
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term

unit: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not cluster"

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

# The documentation page is tested in a real browser.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] \
	     && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	|| echo "No chromium here: install it (apt-get install chromium) or the browser test will fail."

# Server after server on this machine, about an hour. The peers' environments are built in .bench/.
.PHONY: bench bench-quick wrk
bench: $(INSTALLED) wrk
	$(BIN)/python -m benchmarks all --docs docs

bench-quick: $(INSTALLED) wrk
	$(BIN)/python -m benchmarks quick

.PHONY: bench-generation
bench-generation: $(INSTALLED)
	$(BIN)/python -m benchmarks.generation --docs docs

wrk:
	@command -v wrk >/dev/null \
	|| { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] \
	     && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends wrk >/dev/null; } \
	|| { echo "No wrk here: install it (apt-get install wrk)."; exit 1; }

clean:
	rm -rf $(VENV) .demo .bench
