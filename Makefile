# make demo      train a small network dense and pruned, export both, print a table
# make test      the tests, on TensorFlow, on JAX, and on tf_keras with TF-MOT
# make test-all  these, and all that is marked slow: an hour
# make lint      ruff
# Each sets up .venv first if need be. Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
WORKERS ?= 2
export TF_CPP_MIN_LOG_LEVEL ?= 3

BIN := .venv/bin
READY := .venv/.installed
# The tests compile the same small programs again and again: JAX keeps them, for both workers.
JAX_CACHE := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/build/jax_cache JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
# ... and run each of them a few times: XLA spends a quarter of the whole time on optimizing them.
PYTEST := XLA_FLAGS=--xla_backend_optimization_level=0 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all tests lint

demo: $(READY)
	@mkdir -p build
	@$(BIN)/python examples/quickstart.py 2> build/demo.log || { cat build/demo.log >&2; exit 1; }

test: $(READY)
	@$(MAKE) --no-print-directory tests

test-all: $(READY)
	@$(MAKE) --no-print-directory tests MARKED='-m ""'

# Importing TF-MOT changes which Keras TensorFlow has: what needs it runs by itself.
tests:
	@echo "Tests on the TensorFlow backend"
	@KERAS_BACKEND=tensorflow $(PYTEST) $(MARKED)
	@echo "Tests on the JAX backend"
	@KERAS_BACKEND=jax $(JAX_CACHE) $(PYTEST) $(MARKED)
	@echo "Tests on tf_keras, with TF-MOT"
	@KERAS_BACKEND=tensorflow $(PYTEST) $(MARKED) -W ignore tests/tf_keras

lint: $(READY)
	@$(BIN)/ruff check .

$(READY): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 11) and sys.exit("keras_gibbs needs Python 3.11 or newer, and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12 ..." % v[:2])'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "No virtual environment could be made; on Debian and Ubuntu install python3-venv."; exit 1; }
	@echo "Installing keras_gibbs, TensorFlow and JAX into .venv (once, some minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
