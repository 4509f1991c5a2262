# make setup       a virtual environment with everything the other targets need
# make test        every test: the operator families once on each kind of kernel, then all the rest
# make lint        formatters and static checks
# make sanitize    the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer
# make cuda-check  what nvcc makes of every CUDA kernel: registers, spills, width of accesses
# make demo        builds the kernels, trains small networks, draws demo.png, in five minutes
# make bench       measures everything against plain PyTorch on this machine, for the tables
# make gpu         on a machine with a GPU, with the python3 at hand: tests, sanitizers, measurements

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
FAMILIES := tests/test_strip.py tests/test_pyramid.py tests/test_upsample.py tests/test_height.py \
	tests/test_encoding.py tests/test_encoding_layers.py tests/test_layers.py
EMULATED := tests/test_cuda_traffic.py tests/test_cuda_orders.py tests/test_fuzz.py
MEASURED := strip pyramid upsample height encoding networks
SOURCES := $(shell find csrc tests -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: setup test lint format sanitize cuda-check demo bench gpu clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements-dev.txt requirements-oracles.txt pyproject.toml
	@echo "setting up $(VENV): some 500 MB to download, once"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check \
		-r requirements-dev.txt -r requirements-examples.txt -e .
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-oracles.txt
	@touch $@

# Two processes take whole files, so that what a file prepares is prepared once.
test: export OMP_WAIT_POLICY := passive
test: PYTEST := $(RUN) -m pytest --numprocesses 2 --dist loadfile
test: setup
	STRIPCTX_BACKEND=native $(PYTEST) tests
	STRIPCTX_BACKEND=reference $(PYTEST) $(FAMILIES)
	STRIPCTX_BACKEND=emulated $(PYTEST) $(FAMILIES) $(EMULATED)
	$(MAKE) cuda-check ARCHITECTURES="80 90"

sanitize: setup
	$(RUN) -m pytest tests/test_sanitize.py

# Exit status 77: there is no nvcc, which it has said.
cuda-check: setup
	$(RUN) tests/cuda_check.py $(if $(ARCHITECTURES),--arch $(ARCHITECTURES)) || test $$? -eq 77

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
	for family in $(MEASURED); do $(RUN) -m benchmarks.$$family || exit 1; done
	$(RUN) -m benchmarks.report

gpu:
	$(PYTHON) -m benchmarks.gpu $(FAMILIES)

clean:
	rm -rf build demo.png
