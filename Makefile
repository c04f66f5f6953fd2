# `make run` and `make test` are all a newcomer needs; each makes the environment first.
PYTHON ?= python3
MINUTES ?= 10
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

# The page at / is tested in Chromium, which no package index has; without it all other tests run.
BROWSER = $$({ command -v chromium && command -v chromedriver; } >/dev/null || { echo --ignore=tests/browser; \
	echo "tests/browser is left out: apt-get install chromium chromium-driver" >&2; })

.PHONY: run test test-all test-faults mutation coverage check docs formats targets bench bench-serving bench-raw bench-scale bench-zoo soak clean

run: $(VENV)/.run
	$(BIN)/python -m deploy_runner run pipeline.yaml

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "not slow and not faults" $(BROWSER)

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "not faults" $(BROWSER)

test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m faults

# Slower than `make test`; limits of time that a test sets may be exceeded.
coverage: $(VENV)/.dev
	$(BIN)/python -m tests.coverage -n 2 -m "not slow and not faults" $(BROWSER)

mutation: $(VENV)/.dev
	$(BIN)/python -m tests.mutation

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py
	PYTHONPATH=docs $(BIN)/python -m zensical build --strict --clean
	@echo "the site is in build/site; to read it: python3 -m http.server --directory build/site"

formats: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/pipeline/test_formats.py --write-formats

targets: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/serve/test_target_table.py --write-targets

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.converting

bench-serving: $(VENV)/.dev
	$(BIN)/python -m benchmarks.serving

bench-raw: $(VENV)/.dev
	$(BIN)/python -m benchmarks.raw

bench-scale: $(VENV)/.dev
	$(BIN)/python -m benchmarks.shared_cache
	$(BIN)/python -m benchmarks.ray_nodes

# Hours on a busy machine; it goes on where it was stopped. Delete benchmarks/results/zoo.jsonl to begin anew.
bench-zoo: $(VENV)/.dev
	$(BIN)/python -m benchmarks.zoo --write-docs

soak: $(VENV)/.dev
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "deploy-runner needs Python 3.11 or newer: make PYTHON=python3.12 …"; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "Python's venv is missing: apt-get install python3-venv"; exit 2; }

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[torch,onnx,sagemaker,hub]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.run
	$(PIP) -e ".[all,dev]"
	$(BIN)/python -m tests.torchvision_cpu
	@touch $@

clean:
	rm -rf $(VENV) .deploy-runner .coverage .cache build *.egg-info
