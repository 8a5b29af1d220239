.DEFAULT_GOAL := help
PYTHON ?= python3

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

build: ## install the package with its test and lint tools
	$(PYTHON) -m pip install ".[test,lint]"

debug: ## the same with assertions and debug symbols
	DASHINFER_DEBUG=1 $(PYTHON) -m pip install --force-reinstall --no-deps .

test: ## the suite, as CI runs it
	pytest

test-all: ## the full matrix and more random examples (long)
	DASHINFER_TEST_ALL=1 pytest

lint: ## ruff, mypy and clang-format
	ruff check . && ruff format --check . && mypy && clang-format --dry-run -Werror $$(git ls-files 'cpu_kernels/*.cpp' 'cpu_kernels/*.h' 'cuda_kernels/*.cpp' 'cuda_kernels/*.h' 'tests/*.cpp')

test-clients: ## more real clients against a server, each in an environment of its own (needs a package index and node)
	$(PYTHON) tests/server/clients/run_all.py

bench: ## throughput and latency of a 0.5B shape beside the machine's limits
	dashinfer-lite bench --shape qwen2.5-0.5b

bench-compare: ## two files of results side by side: make bench-compare A=before.jsonl B=after.jsonl
	@$(PYTHON) tests/bench/compare.py $(A) $(B)

asan: ## the suite under the address sanitizer
	DASHINFER_SANITIZE=address $(PYTHON) -m pip install --force-reinstall --no-deps .
	LD_PRELOAD=$$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 $(PYTHON) -m pytest

.PHONY: help build debug test test-all test-clients lint bench bench-compare asan
