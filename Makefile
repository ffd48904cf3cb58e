# make demo: hear a recording come back from a small file.   make test: run every check.
# make benchmarks RECORDINGS=FOLDER: measure everything in docs/benchmarks.md anew, in about an hour.
# All set up .venv first, with the versions of constraints.txt; PYTHON names the interpreter to make it from.

PYTHON ?= python3
RUN = .venv/bin/python -m
SETUP = pyproject.toml constraints.txt

.PHONY: demo test benchmarks clean

demo: .venv/installed
	.venv/bin/python examples/demo.py

test: .venv/installed-test
	$(RUN) flake8
	$(RUN) pytest -q

benchmarks: .venv/installed-benchmarks
	.venv/bin/python docs/benchmarks.py "$(RECORDINGS)"

.venv/installed: $(SETUP)
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("nac needs Python 3.11 or later; make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(RUN) pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(RUN) pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

.venv/installed-benchmarks: .venv/installed
	$(RUN) pip install --quiet --constraint constraints.txt --editable '.[eval]' encodec
	touch $@

clean:
	rm -rf .venv build demo *.egg-info
