PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] <= (3,13))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
# Where it is set, each of the hundreds of processes of a run would compile what it imports again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test simulate lint bench notebooks docs clean
help:
	@echo "make demo   review the Python packages installed here with a fleet of agents"
	@echo "make test   run the tests"
	@echo "make simulate SEEDS=1..100000  run the fleet in a simulation, seed by seed; SEED=n tells the story of one"
	@echo "make lint   check style, types and floors"
	@echo "make bench  measure, and print a table"
	@echo "make notebooks  run the notebooks against a fleet of their own, and keep what they print"
	@echo "make docs   write docs/reference from the code"

.venv/.stamp: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Nexus needs Python 3.11 to 3.13; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (about a minute the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.stamp
	@$(BIN)/nexus demo

test: .venv/.stamp
	@$(BIN)/python -m pytest -n 3 --dist loadscope

simulate: .venv/.stamp
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),2000)) $(if $(BUG),--bug $(BUG))

lint: .venv/.stamp
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: .venv/.stamp
	@$(BIN)/python -m benchmarks.run

docs: .venv/.stamp
	@$(BIN)/python docs/generate.py

notebooks: .venv/.stamp
	@$(BIN)/python -m notebooks.build

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
