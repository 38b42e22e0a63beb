# One-word commands; each does its own set-up (virtual environment, pinned packages).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check bench bench-model bench-attacks bench-homomorphic evaluate evaluate-noise calibrate clean

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

bench-attacks: $(STAMP)  ## the bars of the attacks: what unprotected, rounded, obfuscated, noised caches give away
	$(BIN)/python benchmarks/attacks.py

evaluate: $(STAMP)  ## every attack on every built-in policy, at most 15 minutes on 2 cores; writes build/evaluation
	$(BIN)/splitinfer evaluate local public-prefix sealed-prefill sealed-decode noised-prefill noised-decode \
		masked homomorphic --out build/evaluation

evaluate-noise: $(STAMP)  ## the long study of noise: leakage and utility over sigma; writes build/evaluation-noise
	$(BIN)/splitinfer evaluate noised-prefill noised-decode --prompts 20 --sigma 0.02 --sigma 0.05 --sigma 0.1 --sigma 0.15 --sigma 0.2 \
		--sigma 0.3 --sigma 0.5 --sigma 1 --out build/evaluation-noise

bench-homomorphic: $(STAMP)  ## homomorphic and masked against their marks; exits 1 where one is missed
	$(BIN)/python benchmarks/homomorphic.py --keep; halves=$$?; $(BIN)/python benchmarks/masked.py; masked=$$?; \
		$(BIN)/python benchmarks/served_rounds.py && exit $$((halves | masked))

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
