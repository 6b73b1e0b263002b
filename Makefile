PYTHON ?= python3
# `make .venv PIPFLAGS=` shows everything that pip does.
PIPFLAGS ?= --quiet --quiet

python := .venv/bin/python
demo := results/demo

.DEFAULT_GOAL := help
.PHONY: help .venv demo test nightly lint clean
.NOTPARALLEL:

help:
	@echo "make demo    set up, run the permuted-digits comparison (no download of data), write its report"
	@echo "make test    set up, then every check: ruff, mypy, pytest"
	@echo "make nightly set up, then more than 1,000 random models and 10,000 random configurations (minutes)"
	@echo "make lint    set up, then ruff and mypy only"
	@echo "make .venv   set up only: .venv with the versions in constraints.txt"
	@echo "make clean   remove caches and built files; .venv and results/ stay"

.venv: .venv/installed

# The stamp comes last, so that an interrupted set-up is done again.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is: $$($(PYTHON) --version 2>&1 | tail -n 1)." \
			"Name another, as in: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(python) || { echo "Making .venv ..."; $(PYTHON) -m venv .venv; }
	@echo "Installing into .venv (PyTorch is large: a few minutes the first time) ..."
	@$(python) -m pip install $(PIPFLAGS) --disable-pip-version-check -c constraints.txt -e '.[dev,benchmarks]'
	@touch $@
	@echo "Installed."

demo: .venv
	@$(python) -m benchmarks run permuted-digits \
		--strategies naive,fresh,synaptic-stripping,hyper-hypo --seeds 3 --jobs 2 --out $(demo)
	@$(python) -m benchmarks compare $(demo)
	@$(python) -m benchmarks compare $(demo) --format html --output $(demo)/report.html
	@echo "The report is in $(demo)/report.html: open it in a browser."

lint: .venv
	@echo "ruff check" && $(python) -m ruff check .
	@echo "ruff format --check" && $(python) -m ruff format --check .
	@echo "mypy" && $(python) -m mypy

test: lint
	@echo "pytest" && $(python) -m pytest -n auto --maxprocesses=4

# Other cases every time; `make nightly SEED=7` draws the same again.
nightly: .venv
	@PLASTICITY_TESTS=nightly OMP_NUM_THREADS=1 $(python) -m pytest -n auto --maxprocesses=4 --durations=10 \
		$(if $(SEED),--hypothesis-seed=$(SEED)) tests/test_random_models.py tests/test_random_configurations.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find plasticity strategies benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
