# Each target sets up what it needs. TORCH_INDEX=<url> takes torch from there (the CPU build, say).

PYTHON ?= python3
CONFIG ?=
CORES  ?= all
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := $(shell sed -n 's/^\(torch\(vision\)\{0,1\}==[0-9.]*\).*/\1/p' envs/requirements.txt)

export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup run test test-quick test-all hosts-test slurm-test promise kills torch-suite bench lint lock schemas reference pictures docs clean

# Install those of Debian's packages that are missing.
packages = dpkg --status $(1) > /dev/null 2>&1 || \
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends $(1); }

help:  ## say what there is to do
	@echo "make run CONFIG=<file> CORES=<n>   train, evaluate and report (default: config/config.yaml, all)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s%s\n", $$1, $$2 }' Makefile

setup: $(VENV)/ready  ## make the environment .venv from locked requirements

run: setup  ## train, evaluate and report
	@lockstep config config/config.yaml $(CONFIG)
	snakemake --cores $(CORES) $(if $(CONFIG),--configfile $(CONFIG))

# Two workers, one of which has the ranks; they leave no core for more threads.
PYTEST := OMP_NUM_THREADS=1 pytest --numprocesses 2

test-quick: setup  ## run most unit tests: half a minute
	$(PYTEST) -m "not slow and not thorough" tests/unit

test: setup  ## run what tells whether a change is good, with mpirun and Snakemake: twelve minutes on two cores
	$(PYTEST) -m "not thorough"

test-all: setup  ## run all tests but those that want root: longer
	$(PYTEST)

hosts-test: setup  ## run on three hosts, in network namespaces: as root, with Debian's packages
	$(call packages,openssh-server openssh-client iproute2)
	pytest tests/hosts

slurm-test: setup  ## run on a SLURM cluster on this machine: as root, with Debian's packages
	$(call packages,slurmctld slurmd slurm-client munge libpmix2 iproute2)
	pytest tests/slurm

promise: setup  ## train the matrix of the promise and models drawn at random, and write their tables to docs
	python -m tests.mpi.matrix
	python -m tests.mpi.drawn_runs

kills: setup  ## kill runs and ranks at every place, go on, compare, and write their tables to docs
	python -m tests.mpi.kill_matrix
	python -m tests.mpi.survive_matrix
	python -m tests.mpi.long_walk

torch-suite: setup  ## run PyTorch's tests of torch.distributed over MPI and over Gloo
	python -m tests.mpi.torch_suite

bench: setup  ## measure Lockstep beside its peers, and what its parts cost: an hour, on an idle machine
	$(call install,--require-hashes --requirement envs/bench.txt)
	snakemake --cores all prepare --configfile config/mnist.yaml
	python -m benchmarks.head_to_head --json results/head_to_head.json
	python -m benchmarks.input
	python -m benchmarks.tree_cost
	python -m benchmarks.all_reduce
	python -m benchmarks.checkpoint
	python -m benchmarks.memory
	python -m benchmarks.large_data
	python -m benchmarks.scale
	python -m benchmarks.faults
	python -m benchmarks.recovery
	python -m benchmarks.library
	python -m benchmarks.around

lint: setup  ## check style, types, who imports whom, and rules
	ruff format --check .
	ruff check .
	mypy
	lint-imports --no-logo
	snakefmt --check --compact-diff Snakefile workflow src/lockstep/pipeline/project
	snakemake --lint

lock: setup  ## pin what envs/requirements.in asks for
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		--quiet --upgrade envs/requirements.in --output-file envs/requirements.txt

schemas: setup  ## write workflow/schemas from the configuration's models
	python -m lockstep.pipeline.config

reference: setup  ## write docs/commands.md and docs/api.md from the parsers and docstrings
	python -m docs.reference

pictures: setup  ## train config/seeds.yaml, and take the documents' pictures of it
	$(call packages,chromium)
	snakemake --cores all --configfile config/seeds.yaml
	python -m docs.pictures

# A page's links lead to files all over the repository: the site has those files in the same places.
docs: setup  ## build the documents into site/; a link that leads nowhere is an error
	rm -rf .site && mkdir .site
	git ls-files -z --cached --others --exclude-standard -- '*.md' LICENSE hostfile config docs \
		examples src tests workflow | xargs -0 cp --parents --target-directory .site
	zensical build --strict --clean

clean:  ## remove results, logs and prepared datasets, but not .venv
	rm -rf results logs .snakemake
	for file in data/*/sources.json; do rm -rf "$${file%/sources.json}"; done

# Take those of the locked packages whose lines an expression of awk's is true for.
locked = awk '/^[a-z]/ { keep = $(1) } keep' envs/requirements.txt > $(VENV)/requirements.txt
# uv is three times as fast as pip, and shows what it does; pip knows what a user has configured,
# such as another index, which uv does not.
install = $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode $(1) || \
	$(BIN)/pip install $(1)

# With TORCH_INDEX the packages of torch and of CUDA are left out of the locked list, whose hashes
# are those of the ordinary build, and torch comes from that index in the same version.
$(VENV)/ready: envs/requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Lockstep needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call locked,/^uv==/)
	$(BIN)/pip install --quiet --require-hashes --requirement $(VENV)/requirements.txt
ifdef TORCH_INDEX
	$(call locked,!/^(torch|torchvision|triton|nvidia-|cuda-)/)
	$(call install,--require-hashes --requirement $(VENV)/requirements.txt)
	$(call install,--no-deps --index-url $(TORCH_INDEX) $(TORCH))
else
	$(call install,--require-hashes --requirement envs/requirements.txt)
endif
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
