# make setup   a virtual environment with everything the other targets need
# make test    every test: the operator families once on each kind of kernel, then all the rest
# make lint    formatters and static checks
# make demo    the five-minute tour: builds the kernels, fits a small network, draws demo.png
# make bench   measures the operators against plain PyTorch on this machine

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
FAMILIES := tests/test_strip.py tests/test_encoding.py
SOURCES := $(shell find csrc tests/simt tests/core -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: setup test lint format demo bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements-dev.txt pyproject.toml
	@echo "setting up $(VENV): some 500 MB of packages, once"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -e .
	@touch $@

test: setup
	STRIPCTX_BACKEND=native $(RUN) -m pytest tests
	STRIPCTX_BACKEND=reference $(RUN) -m pytest $(FAMILIES)
	STRIPCTX_BACKEND=emulated $(RUN) -m pytest $(FAMILIES)

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(SOURCES)

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $(SOURCES)

demo: setup
	$(RUN) examples/demo.py $(if $(IMAGE),--image "$(IMAGE)")

bench: setup
	$(RUN) -m pytest benchmarks

clean:
	rm -rf build demo.png
