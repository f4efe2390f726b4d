# Python 3.11 or later and make are all that is needed; every target makes or refreshes .venv first.

VENV := .venv
OLDEST := .venv-oldest
STAMP := $(VENV)/.installed
# A name on PATH may be a shim that does not run, so each candidate has to prove itself; venv needs ensurepip.
USABLE := import ensurepip, sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	"$$p" -c '$(USABLE)' >/dev/null 2>&1 && echo "$$p" && break; done)
DEMO := --config=configs/synthetic.py --workdir=runs/demo

# The page shows what was trained into this folder; without one, the model that comes with the package.
WORKDIR ?=
PORT ?= 7860

define VENV_READY
	@"$(PYTHON)" -c '$(USABLE)' >/dev/null 2>&1 || { \
		echo "error: Python 3.11 or later with the venv module is needed, got PYTHON='$(PYTHON)';" \
			"name one with: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
endef

.PHONY: app demo test test-all test-oldest lint format clean

demo: $(STAMP)
	$(VENV)/bin/python train.py $(DEMO)
	$(VENV)/bin/python eval.py $(DEMO)

test: $(STAMP)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(STAMP)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m ""

# With the oldest versions that the bounds of pyproject.toml and requirements.txt allow.
test-oldest: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv venv --quiet --clear --python $(VENV)/bin/python $(OLDEST)
	VIRTUAL_ENV=$(OLDEST) $(VENV)/bin/uv pip install --quiet --resolution lowest-direct --editable ".[test]"
	$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

app: $(VENV)/.app
	$(VENV)/bin/python -m dpose_jax.app --port=$(PORT) $(addprefix --workdir=,$(WORKDIR))

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(STAMP): requirements.txt pyproject.toml
	$(VENV_READY)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

# Without what tests need.
$(VENV)/.app: requirements.txt pyproject.toml
	$(VENV_READY)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[app]"
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) runs/demo build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
