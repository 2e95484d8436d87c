# Two commands: `make demo` and `make test`. Both begin with `make setup`, which does nothing
# when the pins have not changed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo check test test-all system-packages toolchains vm-image clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "fleetcut needs Python 3.11; $(PYTHON) is not. Next: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip check
	touch $@

demo: setup
	$(BIN)/fleetcut demo

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# As root on Debian the packages that the full suite needs are installed; elsewhere the tests
# that need them are skipped by name (and with CI=true such a skip is a failure).
system-packages:
	@bash tests/install-system-packages.sh

# What native executables for other machines are linked with: their C++ runtime by pip into the
# cache, a cross compiler by apt-get where this is root on Debian. What cannot be had is said.
toolchains: setup
	$(BIN)/fleetcut toolchains --install

# The arm64 board of the tests, about 500 MB in the cache. Built once for each content of its recipe;
# where it cannot be built, the tests that boot it are skipped by name.
vm-image: setup
	$(BIN)/python -m harness.virtual.vm.image

test: setup system-packages check
	-$(BIN)/fleetcut toolchains --install
	$(BIN)/pytest -m "not slow"

test-all: setup system-packages check
	-$(BIN)/fleetcut toolchains --install
	$(BIN)/pytest

clean:
	rm -rf $(VENV) build dist demo-out *.egg-info
