# Two commands matter on a fresh machine: `make demo` and `make test`. Each installs what it needs.
PYTHON ?= python3
# Where pip would fetch a CUDA build of torch and a CPU build is wanted:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# How many tests run side by side; 0: one after the other, in one process.
TEST_WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= passive

CHECKS := check-types check-style check-arrows check-protocol check-figures

.PHONY: demo test test-search test-faults soak check $(CHECKS) proto install fix clean

demo: $(VENV)/.installed
	$(BIN)/lookback demo

# A file's tests stay in one process, which shares what they need. Files come in their own order, by
# which the longest, those of whole services, come first: at the end both processes have work.
test: $(VENV)/.installed-dev
	$(MAKE) --jobs 2 check
	$(BIN)/pytest -q -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

# Property tests on new examples each time, more than `make test` tries of most.
test-search: $(VENV)/.installed-dev
	nice $(BIN)/pytest -q --hypothesis-profile=search $(shell grep -rl "from hypothesis" tests)

# The long fault suite, with a table at its end: about twelve minutes; tests/faults/README.md says
# which fault is where. The tests beside it are those whose mutants must be caught.
test-faults: $(VENV)/.installed-dev
	nice $(BIN)/pytest -q -m "slow or not slow" tests/faults tests/kvstore/test_power_loss.py \
	    tests/kvstore/test_ghosts.py tests/kvstore/test_takeover.py tests/kvstore/test_dropping.py \
	    tests/kvstore/test_control.py tests/kvstore/test_fenced_writer.py \
	    tests/kvstore/test_arena.py tests/kvstore/test_retention.py \
	    tests/svc/registry/test_redis_faults.py tests/svc/registry/test_leases.py

# Hours of stream through a store of half the size: about a quarter of an hour on two cores.
soak: $(VENV)/.installed
	nice $(BIN)/python -m eval.soak --json eval/results/soak.json

# Types take as long as all the others together, so they come first where two run at once.
check: $(CHECKS)

$(CHECKS): $(VENV)/.installed-dev

check-types:
	$(BIN)/mypy

check-style:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

check-arrows:
	$(BIN)/lint-imports

check-protocol:
	$(BIN)/python proto/generate.py --check

check-figures:
	$(BIN)/python -m svc.report README.md --check

install: $(VENV)/.installed

# torch first and pinned: a later package would otherwise pull the newest build, with CUDA.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check \
	    $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

proto: $(VENV)/.installed-dev
	$(BIN)/python proto/generate.py

fix: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
