# make setup       a virtual environment with everything the other targets need
# make test        every test: the operator families once on each kind of kernel, then all the rest
# make quick       in minutes: what is not marked slow, on the native kernels
# make check       FAMILY=strip (pyramid, upsample, height, encoding, labels): one family on each kind
# make lint        formatters and static checks
# make compilers   the CPU kernels' results, built by each of g++ and clang that is on PATH
# make sanitize    the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer
# make cuda-check  what nvcc makes of every CUDA kernel: registers, spills, width of accesses, and
#                  from that and the emulator how fast each may be on an H100
# make docs        the documentation as a site, in build/site
# make demo        builds the kernels, trains small networks, draws demo.png, in five minutes
# make bench       measures everything against plain PyTorch on this machine, for the tables
# make gpu         on a machine with a GPU, with the python3 at hand: tests, sanitizers, measurements

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
FAMILIES := tests/test_strip.py tests/test_pyramid.py tests/test_upsample.py tests/test_height.py \
	tests/test_encoding.py tests/test_labels.py tests/test_layers_encoding.py tests/test_layers.py
FAMILY_FILES = $(wildcard tests/test_$(FAMILY).py tests/test_layers_$(FAMILY).py)
EMULATED := tests/test_cuda_traffic.py tests/test_cuda_orders.py tests/test_fuzz.py
PYTEST := $(RUN) -m pytest --numprocesses 2
BY_FILE := --dist loadfile --no-loadscope-reorder
MEASURED := strip pyramid upsample height encoding labels models networks
SOURCES := $(shell find csrc examples tests -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: setup test quick check compilers lint format sanitize cuda-check docs demo bench gpu clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements-dev.txt requirements-oracles.txt requirements-networks.txt \
		requirements-export.txt requirements-docs.txt pyproject.toml
	@echo "setting up $(VENV): some 550 MB to download, once"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check \
		-r requirements-dev.txt -r requirements-examples.txt -r requirements-docs.txt -e .
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps \
		-r requirements-oracles.txt -r requirements-networks.txt -r requirements-export.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(VENV)/apart torchvision==0.28.0
	@touch $@

# Two processes take whole files, so that what a file prepares is prepared once. torch.compile takes
# the operators as they are registered, whatever kernels they have: tried natively. So does opcheck;
# the emulated kernels have the native ones' bindings.
test: setup
	STRIPCTX_BACKEND=native $(PYTEST) $(BY_FILE) tests
	STRIPCTX_BACKEND=reference $(PYTEST) $(BY_FILE) -k "not compile" $(FAMILIES)
	STRIPCTX_BACKEND=emulated $(PYTEST) $(BY_FILE) -k "not compile and not opcheck" \
		$(FAMILIES) $(EMULATED)

quick: setup
	STRIPCTX_BACKEND=native $(PYTEST) $(BY_FILE) -m "not slow" tests

check: setup
	$(if $(FAMILY_FILES),,$(error make check FAMILY=strip: one of the families))
	STRIPCTX_BACKEND=native $(PYTEST) $(FAMILY_FILES)
	STRIPCTX_BACKEND=reference $(PYTEST) $(FAMILY_FILES)
	STRIPCTX_BACKEND=emulated $(PYTEST) $(FAMILY_FILES)

# Installs none. One that is there and cannot build the kernels, or gives other numbers, is a failure.
KNOWN_COMPILERS := g++ $(addprefix g++-,11 12 13 14 15) \
	clang++ $(addprefix clang++-,14 15 16 17 18 19 20 21)
COMPILERS ?= $(foreach one,$(KNOWN_COMPILERS),$(if $(shell command -v $(one)),$(one)))

compilers: setup
	for one in $(COMPILERS); do echo "== $$one"; CXX=$$one STRIPCTX_BACKEND=native \
		$(PYTEST) $(BY_FILE) -q -k "against_float64 or same_bits" $(FAMILIES) || exit 1; done

sanitize: setup
	STRIPCTX_SANITIZE_ALL=1 $(RUN) -m pytest tests/test_sanitize.py

# Exit status 77: there is no nvcc, which it has said.
cuda-check: setup
	$(RUN) tests/cuda_check.py --record $(if $(ARCHITECTURES),--arch $(ARCHITECTURES)) || test $$? -eq 77
	$(RUN) tests/speed_model.py || test $$? -eq 77

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(SOURCES)

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $(SOURCES)

# Strict: a link that leads nowhere is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

demo: setup
	$(RUN) examples/demo.py $(if $(IMAGE),--image "$(IMAGE)")

bench: setup
	for family in $(MEASURED); do $(RUN) -m benchmarks.$$family || exit 1; done
	$(RUN) -m benchmarks.report

gpu:
	$(PYTHON) -m benchmarks.gpu $(FAMILIES)

clean:
	rm -rf build demo.png
