# Each target sets everything up by itself, from a bare checkout.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BEGAN := $(shell date +%s)
RUN = -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python $(RUN)
FAST = --hypothesis-profile fast -m "smoke or not (slow or multiprocess or matrix)"
LOWEST = OMP_NUM_THREADS=1 $(VENV)/lowest/bin/python $(RUN) $(FAST) -W default::DeprecationWarning -W default::FutureWarning
OF_WORKSPACE = tests/dashboards/test_wandb.py lightning_uncertainty/dashboards/wandb.py \
	'tests/test_docs.py::test_python_blocks_run_and_print_what_they_say[dashboard]'
export WANDB_MODE ?= offline

.PHONY: demo test test-all test-lowest test-hosts ready mutants gpu lint docs notebooks bench evidence dist browser clean

demo: $(VENV)/demo.stamp
	$(VENV)/bin/lightning-uncertainty demo

test: ready # the fast tier
	$(PYTEST) $(FAST)

test-all: ready
	$(PYTEST)

ready: lint browser $(VENV)/transformers
	@echo "set up, linted and type-checked in $$(($$(date +%s) - $(BEGAN))) s"

test-lowest: $(VENV)/lowest.stamp browser # the fast tier beside the lowest versions that pyproject.toml allows
	$(LOWEST) $(addprefix --deselect=,$(OF_WORKSPACE))
	PYTHONPATH=$(abspath $(VENV)/lowest/workspace) $(LOWEST) $(OF_WORKSPACE) # whose wandb is newer

test-hosts: # projects whose code is not ours, each in an environment of its own; minutes each, a gigabyte each
	$(PYTHON) -m tests.hosts --into $(VENV)/hosts $(HOSTS)

mutants: $(VENV)/test.stamp # small faults, one at a time, each of which a test must see
	$(VENV)/bin/python -m mutants --jobs $(WORKERS)

gpu: # on a machine with a GPU; installs nothing: needs torch, pytorch-lightning, torchmetrics, pytest, hypothesis, numpy
	$(or $(wildcard $(VENV)/bin/python),$(PYTHON)) benchmarks/gpu.py

lint: $(VENV)/test.stamp
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

docs: $(VENV)/docs.stamp
	$(VENV)/bin/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

notebooks: $(VENV)/test.stamp
	$(VENV)/bin/python tests/test_notebooks.py

COSTS ?= weighting lightning_step adoption solvers step_cost architectures scale
bench: $(VENV)/test.stamp # what it costs, an hour on a machine that does nothing else; the guide includes what is written
	for name in $(COSTS); do \
	$(VENV)/bin/python benchmarks/$$name.py > benchmarks/results/$$name.new && \
	mv benchmarks/results/$$name.new benchmarks/results/$$name.md || exit 1; done
	$(if $(filter step_cost,$(COSTS)),$(VENV)/bin/python benchmarks/step_cost.py --tasks 10 --features pooled --rounds 90 > benchmarks/results/step_cost_10.md)

evidence: $(VENV)/bench.stamp # six problems, up to an hour of two cores each; goes on where it was stopped
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/evidence.py & OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/evidence.py; wait

dist: $(VENV)/test.stamp # what a release is made of, in dist/
	rm -rf dist
	$(VENV)/bin/python -m build --no-isolation
	$(VENV)/bin/python -m twine check --strict dist/*

browser: # tests look at the report in a headless Chromium; Debian's is installed where there is none and root asks
	@for name in chromium chromium-browser google-chrome chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	then apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo "the tests of the report need a Chromium on the PATH: install chromium or google-chrome" >&2; exit 1; fi

$(VENV)/transformers: constraints.txt | $(VENV)/pip.stamp # apart: where it can, torchmetrics imports it, for seconds
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt --target $@ 'transformers>=4.40'
	touch $@

clean:
	rm -rf $(VENV) runs dist docs/_build

$(VENV)/pip.stamp:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25'
	touch $@

$(VENV)/lowest.stamp: pyproject.toml constraints.txt tests/lowest.py | $(VENV)/transformers
	$(PYTHON) -m venv $(VENV)/lowest
	$(VENV)/lowest/bin/python -m pip install --quiet --upgrade 'pip>=25'
	$(PYTHON) -m tests.lowest test >$(VENV)/lowest/test.txt
	$(VENV)/lowest/bin/python -m pip install --quiet -c constraints.txt -r $(VENV)/lowest/test.txt
	$(VENV)/lowest/bin/python -m pip install --quiet --no-deps -e .
	$(PYTHON) -m tests.lowest workspace >$(VENV)/lowest/workspace.txt
	$(VENV)/lowest/bin/python -m pip install --quiet --no-warn-conflicts --upgrade --target $(VENV)/lowest/workspace -r $(VENV)/lowest/workspace.txt
	ln -sfn ../transformers $(VENV)/lowest/transformers
	touch $@

$(VENV)/%.stamp: pyproject.toml constraints.txt | $(VENV)/pip.stamp
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@
