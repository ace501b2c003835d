# make quickstart: install, make data, train on this machine, evaluate, report.   make test: lint, types, all tests.
# make tour: the same with a language model that speaks, SmolLM2 from the package index (docs/tour.md).
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip
export HF_HUB_OFFLINE = 1

.PHONY: quickstart tour test lint clean

quickstart: $(VENV)/.installed-quickstart
	$(VENV)/bin/internvl quickstart

tour: $(VENV)/.installed-tour
	$(VENV)/bin/internvl tour

# One worker more than there are cores: many tests wait for processes that they have started.
test: $(VENV)/.installed-test lint
	PYTEST_XDIST_AUTO_NUM_WORKERS=$$(($$(nproc) + 1)) $(VENV)/bin/python -m pytest -q

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# One rule for all sets of extras; installed again when pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	@echo "installing internvl_chat[$*] into $(VENV) (a few minutes the first time)"
	$(PIP) install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@

# gradio asks for a Pillow below 13, the pixels of the goldens are those of 13; the page works with both.
$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	@echo "installing internvl_chat[test,serve,demo] into $(VENV) (a few minutes the first time)"
	$(PIP) install --quiet --disable-pip-version-check -e '.[test,serve,demo]'
	$(PIP) install --quiet --disable-pip-version-check --no-warn-conflicts 'pillow>=13'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
