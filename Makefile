# Each target sets everything up by itself, from a bare checkout.
PYTHON ?= python3
VENV ?= .venv
export WANDB_MODE ?= offline

.PHONY: demo test lint bench clean

demo: $(VENV)/demo.stamp
	$(VENV)/bin/lightning-uncertainty demo

test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

lint: $(VENV)/test.stamp
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: $(VENV)/test.stamp
	$(VENV)/bin/python benchmarks/weighting.py
	$(VENV)/bin/python benchmarks/lightning_step.py

clean:
	rm -rf $(VENV) runs

$(VENV)/pip.stamp:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25'
	touch $@

$(VENV)/%.stamp: pyproject.toml constraints.txt | $(VENV)/pip.stamp
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@
