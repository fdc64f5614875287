VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Processes that test side by side: see tests/conftest.py for who tests what.
TESTERS ?= 3

.PHONY: demo test coverage docs lint format proto clean

demo: $(VENV)/.installed  ## every stage on real pictures; ends with a report
	$(BIN)/dq-cluster demo

test: $(VENV)/.installed .tools/.installed  ## everything but the tests marked slow or gpu
	$(BIN)/python -m pytest -m "not slow and not gpu" -n $(TESTERS) --dist loadgroup

coverage: $(VENV)/.installed  ## lines that tests/unit runs; details in build/coverage/index.html
	$(BIN)/python -m pytest -q tests/unit -m "not slow and not gpu" --cov --cov-report=term \
	  --cov-report=markdown:build/coverage.md --cov-report=html:build/coverage

docs: $(VENV)/.docs  ## the documentation as a website, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.installed  ## after editing dq_cluster/v1/search.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
	  dq_cluster/v1/search.proto

# Pinned, so that installing takes no search for versions and everyone tests the same ones.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "dq_cluster needs Python 3.11 or newer; say PYTHON=... to name one"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,test]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,test,docs]'
	touch $@

# Helm and kubectl for the chart's tests; where they cannot be had, those tests say so and skip.
.tools/.installed: tests/helm/tools.py | $(VENV)/.installed
	$(BIN)/python tests/helm/tools.py .tools && touch $@ || \
	  echo "helm could not be installed: the tests of the chart will be skipped"

clean:
	rm -rf $(VENV) .tools demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
