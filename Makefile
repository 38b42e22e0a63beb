# One-word commands; each does its own set-up (virtual environment, pinned packages).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check bench bench-model calibrate clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

setup: $(STAMP)  ## make the virtual environment with the pinned packages

demo: $(STAMP)  ## ask one private question under every trust mode, device and cloud in two processes
	$(BIN)/splitinfer demo

test: $(STAMP)  ## the tests that fit in 15 minutes on 2 cores, a process a core
	$(BIN)/python -m pytest -n auto --dist loadfile

test-all: $(STAMP)  ## every test, the slow ones included
	$(BIN)/python -m pytest -n auto --dist loadfile -m ''

check: $(STAMP)  ## ruff, mypy strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## every benchmark, at most 15 minutes on 2 cores; writes docs/benchmarks.md
	$(BIN)/python benchmarks/all.py

bench-model: $(STAMP)  ## exact match of the embedded model by context length and question kind, into its model card
	$(BIN)/python benchmarks/embedded_model.py --write

calibrate: $(STAMP)  ## the embedded model's artefact of ftc1 and its certificates, after its weights changed; minutes
	$(BIN)/python tools/write_calibration_text.py --out build/calibration.txt
	$(BIN)/splitinfer model calibrate embedded --first-tokens 1 --corpus build/calibration.txt --out splitinfer/embedded
	$(BIN)/splitinfer model measure embedded --out splitinfer/embedded $(foreach level,2 1.5 1 0.75 0.5 0.375,--codec ftc1-$(level))

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
