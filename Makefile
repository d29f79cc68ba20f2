# Two commands set up everything on a machine that has only Python 3.11+ and make:
#   make demo    generates text with the bundled demo model
#   make test    passes the tests
# On an NVIDIA machine add EXTRA=cuda13 (or cuda12). There
#   make test-gpu                        passes the tests that depend on the device
#   make test-gpu PYTHON_GPU=python3     the same with a Python that has everything, and no network

PYTHON ?= python3
VENV ?= .venv
EXTRA ?= cpu
PYTEST_ARGS ?= -n 3 --dist loadfile
# A test that hangs ends the run, and says where.
PYTEST_LIMITS := -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true --max-worker-restart 1
PYTEST_GPU_ARGS ?= -n 15 --dist worksteal
GPU_TESTS := fast kernels nn generation batching prompt_cache weights loading evaluation chat saving

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTHON_GPU ?= $(BIN)/python

# What the CPU library is compiled from: for this processor, and for tests for all that the compiler knows.
# Without a C compiler nothing is compiled, and everything works more slowly.
CPU_LIBRARY := core/cpu/source $(wildcard core/cpu/source/*) $(addprefix core/cpu/,build.py compiler.py levels.py)

.PHONY: demo test test-gpu lint clean

demo: $(VENV)/.installed
	$(BIN)/corelm generate "To be, or" --model demo:mistral --max-tokens 120 --seed 7 </dev/null

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PYTEST_LIMITS) $(PYTEST_ARGS)

# A Python of the machine's own has further plugins of pytest; one for benchmarks warns where workers run in parallel.
test-gpu: $(if $(filter $(BIN)/python,$(PYTHON_GPU)),$(VENV)/.installed-test)
	PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON_GPU) -m pytest \
		-p no:benchmark -p no:cacheprovider $(PYTEST_GPU_ARGS) $(addprefix tests/,$(GPU_TESTS))

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.cpu-library: $(CPU_LIBRARY) | $(BIN)/python
	CORELM_CPU_LEVELS=best $(BIN)/python -m core.cpu.build
	touch $@

$(VENV)/.cpu-library-test: $(CPU_LIBRARY) | $(BIN)/python
	$(BIN)/python -m core.cpu.build
	touch $(VENV)/.cpu-library $@

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt | $(VENV)/.cpu-library
	CORELM_CPU_LEVELS=best $(PIP) install --quiet --constraint constraints.txt --editable ".[$(EXTRA)]"
	touch $@

$(VENV)/.installed-test: $(BIN)/python pyproject.toml constraints.txt | $(VENV)/.cpu-library-test
	$(PIP) install --quiet --constraint constraints.txt --editable ".[$(EXTRA),test]"
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis core/cpu/lib
