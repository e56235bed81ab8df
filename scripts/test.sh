#!/usr/bin/env bash
# Sets up the environment and runs every check: style, types, imports, prompts, tests.
#   bash scripts/test.sh [pytest arguments]     (the slow tests: pytest -m slow)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh dev

ruff check .
ruff format --check .
mypy
lint-imports --no-logo
python -m lcrec.prompts check
python -m lcrec.prompts check --prompts prompts/short
# One thread each: threads that outnumber the cores wait on one another for most of their time.
OMP_NUM_THREADS=1 pytest -n "${TEST_PROCESSES:-2}" --dist loadfile "$@"
