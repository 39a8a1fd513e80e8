# Everything from nothing: needs make, g++ (or clang++) and Python >= 3.10 with venv.
# torch is installed first, in one version; TORCH_INDEX adds a package index to find it in, e.g.
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
# takes the build without CUDA, which is much the smaller download on Linux.
PYTHON ?= python3
TORCH_VERSION ?= 2.13.0
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
TORCH := $(VENV)/.torch-$(TORCH_VERSION)
INSTALLED := $(VENV)/.installed
PEERS := $(VENV)/.peers
CPP := $(sort $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*/*.cpp csrc/*/*/*.h))
ISA_TESTS := not (reference or triton or cuda or compressed or bitmask or choice or compile or registration or errors)
CU := $(sort $(wildcard csrc/cuda/*.cu))

# Compiling for six kinds of GPU takes minutes, and the tests run the CUDA kernels emulated:
# SPARSEKERN_CUDA=1 builds them here too. `make gpu` and scripts/check_cuda.sh do without being told.
ifneq ($(MAKECMDGOALS),gpu)
export SPARSEKERN_CUDA ?= 0
endif

.PHONY: demo test lint format bench gpu clean

demo: $(INSTALLED)
	$(BIN)/sparsekern train --demo

# Once with the instruction set that the machine would choose, then the compiled operators on every
# other; how they are chosen, registered and traced, and what they refuse, does not depend on it.
test: $(INSTALLED)
	$(BIN)/python -m pytest tests
	@for isa in $$($(BIN)/python -c 'from sparsekern.native import other_isas; print(*other_isas())'); \
	do \
	    echo "tests/ops with SPARSEKERN_ISA=$$isa"; \
	    SPARSEKERN_ISA=$$isa $(BIN)/python -m pytest -q tests/ops -k "$(ISA_TESTS)" || exit 1; \
	done

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP) $(CU)

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP) $(CU)

bench: $(PEERS)
	$(BIN)/sparsekern bench

# Without the virtual environment: the torch and Triton that are there know the driver.
gpu:
	PYTHON=$(PYTHON) scripts/gpu.sh

# Keeps the virtual environment, for torch is a large download: `rm -r .venv` removes it too.
clean:
	rm -rf build dist *.egg-info sparsekern/_c*.*so sparsekern/_c*_build_note.txt
	rm -rf .pytest_cache .mypy_cache .ruff_cache .benchmarks $(INSTALLED) $(PEERS)
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -r {} +

$(TORCH):
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 10) \
	    else f"sparsekern needs Python 3.10 or newer, and $(PYTHON) is {v}: say make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install torch==$(TORCH_VERSION) $(addprefix --extra-index-url ,$(TORCH_INDEX))
	touch $@

$(INSTALLED): $(TORCH) $(CPP) setup.py pyproject.toml sparsekern/_version.py
	$(BIN)/pip install -e '.[dev]'
	$(BIN)/sparsekern info
	touch $@

$(PEERS): $(INSTALLED)
	$(BIN)/pip install -e '.[bench]'
	touch $@
