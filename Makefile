# `make demo` and `make test` need Python 3.11 or newer and make, nothing else: they make .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
WORKERS ?= 2
INSTALLED := .venv/.installed

.DEFAULT_GOAL := test
.PHONY: demo test lint fuzz kernels sanitize bench clean

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/hggraph graph --out demo
	$(BIN)/python examples/03_compare_convolutions.py

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Five minutes with their start: files and calls with something changed, in processes that may crash. Another HGGRAPH_FUZZ_SEED tries
# others.
fuzz: $(INSTALLED)
	HGGRAPH_FUZZ_SECONDS=$${HGGRAPH_FUZZ_SECONDS:-240} $(BIN)/python -m pytest -m slow tests/fuzz

# Longer than a minute: each comparison in each kernel is flipped, and the tests have to notice.
kernels: $(INSTALLED)
	$(BIN)/python -m pytest -m slow tests/kernels

# With a GPU: every kernel under NVIDIA's memory and race checkers.
sanitize: $(INSTALLED)
	for tool in memcheck racecheck; do \
		compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m pytest -m gpu -k parity tests/kernels || exit 1; \
	done

bench: $(INSTALLED)
	$(BIN)/hggraph bench

clean:
	rm -rf .venv build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
