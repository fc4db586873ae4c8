# Few verbs. Each works on a bare machine: what it needs, `make setup` installs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.castor-setup
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: setup demo test test-fast lint bench bench-peers mutants compare compare-short soak figures clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Castor needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@# setuptools warns of folders named like packages; mypy and the tests hold the imports right.
	@# torch alone and first: named together with what needs it, pip may take a build with CUDA.
	$(BIN)/python -m pip install --quiet torch==2.13.0
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[runtime,s3]' --group lint --group test
	@touch $@

demo: setup
	$(BIN)/castor demo --out out/demo

# The tests start hundreds of processes of Castor; each would compile its modules anew.
test test-fast: export PYTHONDONTWRITEBYTECODE =

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-fast: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not long" --hypothesis-profile=fast

# Each fault is planted in a copy of the tree, and its test has to find it.
mutants: setup
	$(BIN)/python tests/mutants/run.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/cluster_simulator.py --out out/bench
	$(BIN)/python benchmarks/recovery/measure.py --out out/bench

# An environment of its own: the peers pin what they need. It runs for about 25 minutes.
bench-peers: .venv-peers/.castor-setup
	.venv-peers/bin/python benchmarks/peers/run.py --out out/bench-peers $(PEERS)

.venv-peers/.castor-setup: benchmarks/requirements-peers.txt pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-peers/bin/python -m pip install --quiet torch==2.13.0
	PYTHONWARNINGS=ignore .venv-peers/bin/python -m pip install --quiet --editable '.[runtime]'
	.venv-peers/bin/python -m pip install --quiet --no-deps lm-resiliency==0.2.0 dlrover==0.6.1
	.venv-peers/bin/python -m pip install --quiet --requirement benchmarks/requirements-peers.txt
	@touch $@

# Real runs beside the simulator's predictions, in under an hour. Needs root (docs/validation.md).
compare: setup
	$(BIN)/python benchmarks/compare/run.py --out out/compare --publish

# One model at two bandwidths, in under ten minutes; exits with 1 beyond loose bounds.
compare-short: setup
	$(BIN)/python benchmarks/compare/run.py --short --out out/compare-short

soak: setup
	$(BIN)/python benchmarks/soak.py --out out/soak

figures: setup
	$(BIN)/castor figures --out out/figures

clean:
	rm -rf $(VENV) .venv-peers out build dist *.egg-info
