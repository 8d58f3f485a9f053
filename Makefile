# Two commands do everything: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help demo serve check test fuzz openapi kills lint docs ui clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.demo ## install, then compress MiniLM on the embedded reviews into out/demo/ (8 to 10 minutes the first time, then seconds)
	$(BIN)/pressoir compress configs/demo.yaml --output out/demo

serve: .venv/.demo ## serve the models of the demo, with a page that compares teacher and compressed model: http://127.0.0.1:5001
	$(BIN)/pressoir serve configs/serving-demo.yaml

# Idle threads of one test must not spin on the CPU of another. A worker takes whole files, in their order: the slowest
# first (tests/conftest.py).
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
FAST := not (process or flow or browser or slow)

check: lint ## check style, formatting and types, then run the fast tests (about 3 minutes on two cores)
	$(PYTEST) -m "$(FAST)"

# Coverage is that of the fast tests: they alone stay in one process.
test: .venv/.dev ## install, then run all tests, with the coverage of the fast ones (up to an hour on two cores)
	$(PYTEST) -m "$(FAST)" --durations 25 --cov --cov-report term:skip-covered
	$(PYTEST) -m "not ($(FAST))" --durations 25

fuzz: .venv/.dev ## damage 5,000 inputs of each kind (tests/fuzz/): none may end in anything but an error of its own
	FUZZ_INPUTS=5000 $(PYTEST) --dist load tests/fuzz/test_fuzz.py

openapi: .venv/.dev ## compare a server with its OpenAPI document in 5,000 requests (tests/pressoir/serving/http/openapi/); takes minutes
	OPENAPI_EXAMPLES=90 $(BIN)/python -m pytest -s tests/pressoir/serving/http/openapi

kills: .venv/.dev ## stop each command at 12 moments by three signals (tests/flows/test_kills.py); takes hours
	KILL_MOMENTS=12 $(PYTEST) --dist load tests/flows/test_kills.py

lint: .venv/.dev ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The variable silences a notice about MkDocs 2, which this site does not use.
docs: .venv/.docs ## build the documentation into out/site/, which reads offline; a broken link fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

ui: .venv/.demo ## start the Prefect and MLflow UIs on this machine; Ctrl-C stops both
	$(BIN)/pressoir ui

clean: ## remove the virtual environment, caches and out/ (not .pressoir/, which holds your models)
	rm -rf .venv out .pytest_cache .mypy_cache .ruff_cache .coverage

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Pressoir needs Python 3.11 or newer; call make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv

# The development set holds the demo's, so installing it satisfies both.
.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo]'
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	@touch $@ .venv/.demo

.venv/.docs: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@
