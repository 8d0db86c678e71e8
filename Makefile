# The commands of this project. Each does its own set-up.
SHELL := bash
PLAYBOOK := .venv/bin/ansible-playbook
NAME ?= demo
SCENARIO ?= default
SCENARIOS := $(notdir $(patsubst %/molecule.yml,%,$(wildcard molecule/*/molecule.yml)))
CASES ?=
FUZZ_SECONDS ?= 60

.PHONY: help bootstrap lock bootstrap-dev sandbox test test-quick test-source test-hosts lint types unit conformance fuzz build sanity integration walk bench molecule clean-host

help: ## show these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

bootstrap:
	@scripts/bootstrap.sh

bootstrap-dev:
	@scripts/bootstrap.sh dev

lock: ## write the lock files anew from requirements*.in
	@scripts/lock.sh

sandbox: bootstrap ## make sandbox NAME=demo: create a sandbox and prove it
	@$(PLAYBOOK) playbooks/create_sandbox.yml -e sandbox_name=$(NAME) -e openshell_allow_host_registries=true
	@scripts/prove.sh $(NAME)
	@echo "Enter it with: podman exec -it openshell-agent-$(NAME) bash"

test: test-quick ## everything that CI runs; what needs one processor and no host goes on beside what needs hosts
	@scripts/beside.sh "$(MAKE) --no-print-directory test-source" "$(MAKE) --no-print-directory test-hosts"

test-quick: bootstrap-dev ## lint, types, unit, conformance
	@$(MAKE) --no-print-directory --jobs 2 --output-sync lint types
	@$(MAKE) --no-print-directory unit conformance

test-source: ## the rest about the source: fuzz, sanity
	@$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=5
	@$(MAKE) --no-print-directory sanity

test-hosts: ## real hosts: each Molecule scenario, integration
	@for scenario in $(SCENARIOS); do $(MAKE) --no-print-directory molecule SCENARIO=$$scenario || exit 1; done
	@$(MAKE) --no-print-directory integration

lint: bootstrap-dev ## ruff, yamllint, ansible-lint, changelog and documentation
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/yamllint -s .
	@scripts/lint_collection.sh

types: bootstrap-dev ## mypy --strict
	@MYPYPATH=proxy_image/src .venv/bin/mypy proxy_image/src/openshell_proxy
	@MYPYPATH=playbooks/collections .venv/bin/mypy -p ansible_collections.openshell.sandbox.plugins

unit: bootstrap-dev ## unit tests of the collection and of the proxy
	@PYTHONPATH=proxy_image/src:playbooks/collections .venv/bin/pytest -n auto --reruns 1 -rR tests/unit

conformance: bootstrap-dev ## make conformance CASES=FILE: policy and protocol cases through the real engine
	@PYTHONPATH=proxy_image/src .venv/bin/python tests/conformance/run.py $(or $(CASES),--known \
		tests/conformance/known.txt tests/conformance/cases.jsonl tests/conformance/openshell_cases.jsonl)

fuzz: bootstrap-dev ## coverage-guided fuzzing of every parser, FUZZ_SECONDS each
	@rm -rf .work/fuzz && mkdir -p .work/fuzz
	@for target in tests/fuzz/fuzz_*.py; do \
		echo "$$target"; TMPDIR=$(CURDIR)/.work/fuzz PYTHONPATH=proxy_image/src .venv/bin/python $$target \
			-max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=1024 -verbosity=0 || exit 1; done

build: bootstrap ## the collection's tarball, in .work/build
	@scripts/build.sh

sanity: bootstrap-dev ## ansible-test sanity on the collection as it is built
	@scripts/sanity.sh

integration: bootstrap-dev ## real Podman, real clients
	@.venv/bin/pytest --reruns 1 -rR tests/integration

walk: bootstrap-dev ## twenty minutes on two processors: killed at every call of Podman, fifty creations at a time
	@OPENSHELL_WALK=1 .venv/bin/pytest tests/integration/test_killed.py

molecule: bootstrap-dev ## make molecule SCENARIO=default: one Molecule scenario, whole sequence
	@scripts/molecule.sh $(SCENARIO)

bench: bootstrap ## make bench [QUICK=1] [ROWS=intercept,...]: measure the proxy against its peers
	@QUICK=$(QUICK) ROWS=$(ROWS) ROUNDS=$(ROUNDS) tests/bench/bench.sh

clean-host: ## remove everything of this project from the machine
	@scripts/clean_host.sh
