# Everything that a fresh Debian or Ubuntu machine with Python 3.11+ needs is installed by these targets.
#
#   make demo    create the environment and watch calls survive a killed server
#   make test    fetch real servers (ZooKeeper, Consul, etcd), lint, type-check, run every test
#   make lint    ruff, mypy --strict and pyright's check of the public types
#   make bench   the benchmarks, as tables        make soak   long runs
#   make docs    the documentation, into site/    make env    only the environment, in .venv
#   make clean   remove what the others made

PYTHON ?= python3
BIN := .venv/bin
# the maintained fork of python-consul has the same module name, so it lives beside the environment, not in it
PY_CONSUL := .tools/py-consul
ARGS ?=
# most tests wait for servers, so more of them than cores run at once; -n 0 runs them one after another
PYTEST := $(BIN)/pytest -n 3 --dist loadfile

.PHONY: env demo servers test lint bench soak docs clean

env: .venv/.complete

.venv/.complete: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "clientlb needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || sh tests/servers/install-venv.sh $(PYTHON)
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[all]' --group dev
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(PY_CONSUL) py-consul
	@touch $@

demo: env
	$(BIN)/clientlb demo $(ARGS)

servers:
	sh tests/servers/fetch.sh

test: env servers lint
	CLIENTLB_EXPECT_CONSUL_LIBRARY=python-consul $(PYTEST) $(ARGS)
	CLIENTLB_EXPECT_CONSUL_LIBRARY=py-consul PYTHONPATH=$(PY_CONSUL) $(PYTEST) \
		tests/discovery/test_consul*.py tests/registration/test_consul.py

lint: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	@# pyright looks for the package with the first python on PATH
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes clientlb --ignoreexternal

bench: env
	sh benchmarks/run.sh $(ARGS)

soak: env servers
	$(BIN)/pytest tests/soak --override-ini='norecursedirs=.*' --timeout=3600 -s $(ARGS)

docs: env
	$(BIN)/zensical build --clean

clean:
	rm -rf .venv .tools .cache site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
