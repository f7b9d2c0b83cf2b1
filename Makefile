# Everything works in a clean clone with only Python (3.11 or later), pip and make on the machine.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint docs notebooks lab benchmark release-check clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

SEED ?= 0

demo: $(INSTALLED)  ## a VAE on the ring of Gaussians: trained, measured, drawn
	$(BIN)/python scripts/demo.py --seed $(SEED)

# `make test SEED=1` makes every claim about chance at another seed.
# Two workers of one thread each: two threads that wait for each other on two busy cores are many times slower.
# Byte code is kept, so that workers and subprocesses need not compile all modules and rewrite all asserts again.
# So is memory: by default a large tensor's goes back to the system when it is freed, and is mapped again page by page.
KEPT := MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=1000000000
test: $(INSTALLED)
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(KEPT) $(BIN)/python -m pytest -n 2 --dist worksteal --base-seed $(SEED)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)  ## builds the site into docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

lab: $(INSTALLED)  ## opens the notebooks in JupyterLab
	$(BIN)/pip install --quiet -c constraints.txt -e '.[notebooks]' jupyterlab
	$(BIN)/jupyter lab notebooks

notebooks: $(INSTALLED)  ## executes every notebook in full and keeps its figures (MNIST in $$PYROVAE_DATA)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[notebooks]'
	OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb

benchmark: $(INSTALLED)  ## steps and log p(x) beside stock Pyro, PyTorch and NumPyro; leave the machine to it
	$(BIN)/pip install --quiet -c constraints.txt -e '.[benchmark]'
	$(BIN)/python scripts/benchmarks/speed.py --full

release-check:  ## builds the sdist and the wheel, checks both, and runs the wheel's demo in a venv of its own
	rm -rf dist build
	$(PYTHON) -m venv build/tools
	build/tools/bin/pip install --quiet build twine
	build/tools/bin/python -m build --outdir dist
	build/tools/bin/twine check --strict dist/*
	$(PYTHON) .ci/check_distributions.py dist
	$(PYTHON) -m venv build/venv
	build/venv/bin/pip install --quiet -c constraints.txt dist/*.whl
	build/venv/bin/pip check
	cd build && OMP_NUM_THREADS=1 venv/bin/pyrovae demo --epochs 3 --num-samples 100 --num-data 100 --out demo

clean:
	rm -rf .venv build dist docs/_build docs/api docs/notebooks
