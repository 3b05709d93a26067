# make app   open the studio in a browser          make test   run every test
# make lint  check the style                       make clean  remove what these made
#
# PYTHON picks the interpreter for the virtual environment: make app PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Idle OpenMP threads sleep instead of spinning: several times faster as soon as anything else runs on the cores.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: app test lint clean browser gltf-validator

app: $(VENV)/.installed
	$(BIN)/python app.py

test: $(VENV)/.installed-tests browser gltf-validator
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.installed-tests
	$(BIN)/python -m ruff check .

clean:
	rm -rf $(VENV) node_modules
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else \
	  "Python 3.10, 3.11 or 3.12 is needed, but $(PYTHON) is %d.%d; name another: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that nothing else decides which build of it is installed.
$(VENV)/.installed: requirements-cpu.txt | $(VENV)/bin/python
	@echo "Installing the studio (about 2 GB, once)"
	$(PIP) "$$(grep '^torch==' requirements-cpu.txt)"
	$(PIP) -r requirements-cpu.txt
	@touch $@

$(VENV)/.installed-tests: requirements-test.txt $(VENV)/.installed
	$(PIP) -r requirements-test.txt
	@touch $@

# The page is tested in a real browser. Without one, those tests are skipped and say so.
browser:
	@if command -v chromium >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing chromium for the browser tests"; \
	  (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium) \
	    >/dev/null 2>&1 || echo "Skipped: chromium could not be installed; the browser tests will be skipped."; \
	else \
	  echo "Skipped: chromium is missing, and installing it needs root and apt-get; the browser tests will be skipped."; \
	fi

# Exported GLB files are checked with the Khronos validator, which is an npm package.
gltf-validator:
	@if [ -d node_modules/gltf-validator ]; then :; \
	elif command -v npm >/dev/null; then \
	  npm install --silent --no-save --no-package-lock gltf-validator@2.0.0-dev.3.10 >/dev/null 2>&1 \
	    || echo "Skipped: gltf-validator could not be installed; its tests will be skipped."; \
	else \
	  echo "Skipped: npm is missing; the tests with the Khronos glTF validator will be skipped."; \
	fi
