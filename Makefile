# make demo    the main job on the embedded phantom cohort, in demo/
# make test    the tests
# make check   lint and types
# Needs Python 3.11 or newer with venv. `make demo PYTHON=python3.12` takes another one.

PYTHON ?= python3
VENV   ?= .venv
DEMO   ?= demo
PY      = $(VENV)/bin/python

.PHONY: demo test check clean
.DELETE_ON_ERROR:

$(VENV)/ready: pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; use make PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "error: $(PYTHON) has no venv; on Debian: apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and the rest into $(VENV): some minutes without a word (behind a firewall: README, Behind a firewall)"
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[dev]'
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --no-deps torch-fidelity
	touch $@

# Each step is skipped when its folder is there; training resumes where it stopped, or says that all is done.
demo: $(VENV)/ready
	@test -d $(DEMO)/phantom || { echo "1 of 5: phantom scans"; $(PY) -m data phantom --out $(DEMO)/phantom --patients 32 --lesions 18 --seed 0; }
	@printf '%064d' 0 > $(DEMO)/pseudonym.key  # phantom patients need no secret
	@test -d $(DEMO)/patches || { echo "2 of 5: patches"; $(PY) -m data prepare $(DEMO)/phantom --lesions $(DEMO)/phantom/annotations.csv \
	    --out $(DEMO)/patches --size 32 --spacing 1.25 --slices 3 --key $(DEMO)/pseudonym.key --licence "CC0-1.0: procedural phantoms, nobody's data"; }
	@echo "3 of 5: training"; $(PY) train.py --data $(DEMO)/patches --out $(DEMO)/run --training.steps 2500
	@test -d $(DEMO)/synthetic || { echo "4 of 5: samples"; $(PY) sample.py --run $(DEMO)/run --out $(DEMO)/synthetic --seeds 0-255 --format png,nifti,dicom; }
	@test -d $(DEMO)/report || { echo "5 of 5: audit"; $(PY) -m evaluate $(DEMO)/patches $(DEMO)/synthetic --out $(DEMO)/report; }
	@echo
	@echo "All five steps are done (what they call next, too)."
	@echo "pictures  $(DEMO)/run/samples/ and $(DEMO)/synthetic/preview.png"
	@echo "DICOM     $(DEMO)/synthetic/dicom/ (256 synthetic CT images), $(DEMO)/phantom/ (32 series)"
	@echo "report    $(DEMO)/report/report.html"
	@echo
	@echo "Next, on your own scans (each command has a --help):"
	@echo "  $(PY) -m data prepare SCANS --lesions annotations.csv --out patches --size 64 --spacing 1.0"
	@echo "  $(PY) train.py --data patches --out run"
	@echo "  $(PY) sample.py --run run --out synthetic --seeds 0-255 --format png,nifti,dicom"
	@echo "  $(PY) -m evaluate patches synthetic --out report"

test: $(VENV)/ready
	$(PY) -m pytest -m 'not slow' -n auto --maxprocesses 4

check: $(VENV)/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf $(VENV) $(DEMO)
