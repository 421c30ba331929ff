# Every target does the set-up it needs; a finished set-up costs a fraction of a second.
# `make` itself exits with 2 whenever a command fails: for oneshot's own exit codes call .venv/bin/oneshot.

PYTHON ?= python3
ARGS ?=
# Workers for the tests. Each imports TensorFlow and TFX for itself and keeps to whole files, whose fixtures
# (a trained model, a finished run) cost more than their tests.
WORKERS ?= 2
# Airflow has an environment of its own: the core alone, which brings the standard operators.
AIRFLOW = apache-airflow-core==3.3.2
BEAM = $(shell sed -n 's/^apache-beam==\([0-9.]*\).*>=.*/\1/p' requirements.lock)
COMMON_MARKER = platform_machine == 'x86_64' and platform_python_implementation == 'CPython' and sys_platform == 'linux'
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup run demo test test-portable prism docs lint format doctor lock audit sbom airflow airflow-demo
.PHONY: bench-accuracy bench-growth bench-ingest bench-serving bench-train bench-gpu clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24
	@echo '  GPU=1 adds CUDA for TensorFlow, once: make run GPU=1'

setup:
	@$(PYTHON) scripts/bootstrap.py $(if $(GPU),--gpu)

run: setup ## images to a model that TF Serving can use; options: make run ARGS="--set train.seed=2"
	@$(BIN)/oneshot run $(ARGS)

test: setup airflow prism ## all tests; options for pytest: make test ARGS="-k pairs"
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-portable: setup prism ## Beam's job server Prism and two worker pools, one of which is killed; needs Go
	$(BIN)/python -m pytest tests/pipeline/runners/test_portable.py $(ARGS)

# Beam's job server, of the version of Beam. Without Go, or where it cannot be had, the tests that need it are skipped.
prism: setup
	@test -x $(BIN)/prism || { command -v go > /dev/null && echo "Building Beam's job server Prism" && \
	  GOBIN=$(CURDIR)/$(BIN) go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(BEAM); } \
	  || echo "No Prism, Beam's job server (it needs Go): tests/pipeline/runners/test_portable.py is skipped in part"

docs: setup ## the documents as a site in build/site, after the pages that are written from the program
	$(BIN)/python scripts/docs_reference.py
	$(BIN)/python scripts/docs_site.py

lint: setup ## ruff, mypy, and the arrows between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## formats the code, with the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: setup ## a page to try the pushed model on; options: make demo ARGS="--port 8080"
	@$(BIN)/oneshot demo $(ARGS)

doctor: setup ## what is installed, which devices and data are found, what would stop a run
	@$(BIN)/oneshot doctor $(ARGS)

# Pins stay as they are unless setup.py rules them out; ARGS=--upgrade takes the newest. The marker that all
# lines have in common is dropped (see [tool.uv] in pyproject.toml: nothing else is supported).
LOCK = $(BIN)/uv pip compile -q --universal --python-version 3.10 --generate-hashes
lock: setup ## makes the lock files anew from setup.py
	$(LOCK) --extra dev --extra docs --extra serve --extra postgres --extra mysql --extra heic --extra faces --extra demo --extra kubeflow $(ARGS) setup.py \
	  -o requirements.lock --custom-compile-command 'make lock'
	$(LOCK) --extra gpu --no-annotate --no-header setup.py \
	  -c requirements.lock | awk '/^[^ ]/ { gpu = /^nvidia/ } gpu' > requirements-gpu.lock
	echo $(AIRFLOW) | $(LOCK) --no-annotate $(ARGS) - \
	  -o requirements-airflow.lock --custom-compile-command 'make lock'
	sed -E -i "s/ and $(COMMON_MARKER)//; s/ ; python_full_version < '3.14'( \\\\)?$$/\1/; s/ and python_full_version < '3.14'//" \
	  requirements.lock requirements-gpu.lock requirements-airflow.lock

audit: setup ## known vulnerabilities of what the lock files pin; what was decided of them is in audit.txt
	@$(BIN)/python scripts/audit.py

sbom: setup ## what is installed, as CycloneDX: build/sbom.json
	@mkdir -p build
	@$(BIN)/uv tool run --python $(BIN)/python --from cyclonedx-bom==7.5.0 \
	  cyclonedx-py environment --validate --output-reproducible --output-file build/sbom.json $(BIN)/python

airflow: setup
	@$(BIN)/python scripts/airflow_environment.py

airflow-demo: airflow ## a real Airflow scheduler retrains on three small spans; shows its timeline
	@$(BIN)/python -m benchmarks.airflow_demo.demo $(ARGS)

bench-accuracy: setup ## presets and minimal sets with three seeds each, against published figures: hours, may be stopped
	$(BIN)/python -m benchmarks.bench_accuracy $(ARGS)

bench-serving: setup ## the local server and the gallery, against the bare model; --seconds and --json by ARGS
	$(BIN)/python -m benchmarks.bench_serving $(ARGS)
	$(BIN)/python -m benchmarks.bench_gallery

bench-growth: setup ## processor time and memory of each step of a run as images, pairs and trials grow; --pairs and --plot by ARGS
	$(BIN)/python -m benchmarks.bench_growth $(ARGS)

bench-ingest: setup ## pair records by Beam against a plain loop: rate, memory, size; --pairs, --workers and --plot by ARGS
	$(BIN)/python -m benchmarks.bench_ingest $(ARGS)

bench-train: setup ## what a step of training is made of and how fast it is; options by ARGS, such as --to-the-end
	$(BIN)/python -m benchmarks.bench_train $(ARGS)

bench-gpu: setup ## the same on GPUs, their utilisation, and how long a good model takes; needs a GPU
	$(BIN)/python -m benchmarks.bench_gpu $(ARGS)

clean: ## removes the environment and caches; output/ stays
	rm -rf .venv .venv.lock .venv-airflow .venv-airflow.lock build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './output/*' -prune -exec rm -rf {} +
