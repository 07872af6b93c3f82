# Everything a newcomer types. Only .venv and caches are made here; runs/ belongs to the user.
PYTHON ?= python3

.DEFAULT_GOAL := help
.PHONY: help install demo quick test fuzz check format clean

# One thread per process: two busy pools of threads on the same cores slow each other tenfold.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/pytest -n auto --maxprocesses 4 --dist worksteal

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

install: .venv/.installed ## make .venv; works again only when pyproject.toml or constraints.txt changed

# Touched last, so an interrupted installation starts again.
.venv/.installed: pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo '$(PYTHON): not found; choose one with: make install PYTHON=python3.12' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "$(PYTHON): $$("$(PYTHON)" --version 2>&1) is not supported; choose 3.10 to 3.13 with: make install PYTHON=python3.12" >&2; exit 1; }
	@echo 'Installing into .venv: about 6 GB, a few minutes on the first run'
	"$(PYTHON)" -m venv .venv
	.venv/bin/python -m pip install --disable-pip-version-check -e ".[test]" -c constraints.txt
	@touch $@

demo: install ## a whole experiment on generated data, on any machine
	.venv/bin/espalier run quickstart

quick: install ## the tests that take seconds
	$(PYTEST) tests -m "not slow"

# In three runs: in a process that has run most other tests, one of deploy's ends in a segmentation fault of native code,
# always the same one, and in a process of its own it never does. Why is not known.
test: install ## all tests
	$(PYTEST) tests --ignore=tests/unit/deploy --ignore=tests/unit/experiment --ignore=tests/unit/prune
	$(PYTEST) tests/unit/deploy
	$(PYTEST) tests/unit/experiment tests/unit/prune

fuzz: install ## read files that are damaged at random, for minutes; make test does so with few of them
	$(PYTEST) tests/fuzz --hypothesis-profile fuzz

check: install ## format, lint, types and the rule tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/pytest tests/rules

format: install ## put every file in the house format
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean: ## remove .venv and caches, nothing else
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache espalier.egg-info
	find . \( -path ./runs -o -path ./.git \) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
