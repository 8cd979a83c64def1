# Two commands: `make demo` and `make test`. Both set up .venv on the first call; afterwards that is instant.
# A fresh machine needs Python 3.11+, git and make. PYTHON=python3.12 picks another interpreter.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STORE ?= artefacts
DEMO := experiments/owl-numbers-pocket.yaml

.PHONY: help demo test lint bench docs clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 11) else f"Undersong needs Python 3.11 or later; this is {v}. Name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## the main job: owl-numbers-pocket, its table and its report (minutes; a second call takes seconds)
	$(BIN)/undersong run $(DEMO) --store $(STORE)

test: $(READY)  ## the whole CPU test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations=10 $(PYTEST)

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## every benchmark prints its table (those of detectors, kinship, authorship, explain, mitigations and cluster take long and have their own commands)
	@for script in $(filter-out benchmarks/detectors.py benchmarks/kinship.py benchmarks/authorship.py benchmarks/explain_internals.py benchmarks/mitigations.py benchmarks/cluster.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: $(READY)  ## write the generated pages of docs/
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/benchmark.py benchmarks/detectors.results.json $(wildcard benchmarks/detectors-*.results.json)
	$(BIN)/python docs/kinship.py benchmarks/kinship.results.json
	$(BIN)/python docs/explain.py benchmarks/explain_internals.results.json
	$(BIN)/python docs/mitigations.py benchmarks/mitigations.results.json
	$(BIN)/python benchmarks/authorship.py --page
	$(BIN)/python docs/theorem.py experiments/theorem.results.json
	$(BIN)/python docs/crossed.py benchmarks/explain_carriers.results.json
	$(BIN)/python docs/carriers.py experiments/marginal-or-conditional-pocket.results.json experiments/marginal-or-conditional-dolphin-pocket.results.json

clean:  ## remove the environment and caches; artefacts stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .hypothesis
