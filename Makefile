# Everything runs in .venv, which the first target makes. Other Python: make PYTHON=python3.12 demo
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
# Seconds that one slow test may take
SLOW_TIMEOUT ?= 3600
SLOW_TESTS   ?= tests
# Empty is unset: containers often forbid compiled files, and then each of pytest's workers compiles all tests, 10 s.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check slow build clean

demo: $(VENV)/installed
	$(BIN)/stunet_demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10 -m "not slow"

slow: $(VENV)/installed
	$(BIN)/python -m pytest -v -m slow --durations=0 --timeout=$(SLOW_TIMEOUT) $(SLOW_TESTS)

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

build: $(VENV)/installed
	$(BIN)/python -m build --outdir dist .

# One pip call with the pins, so that nothing pulls another build of torch.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
