#!/usr/bin/env bash
# Set up .venv and pass the tests: all that a newcomer needs. `--newest` or `--lowest` first takes other versions of the
# packages, in an environment of their own; then `--lint` checks style and types first, as CI does, and `--fast` runs
# unit and golden tests alone, without those that are marked slow; other arguments go to pytest. Files of tests run side
# by side, as many as there are cores, in their order: those of real launches, which take longest, come first.
set -euo pipefail
cd "$(dirname "$0")/.."
versions=known
if [[ "${1:-}" == --newest || "${1:-}" == --lowest ]]; then
    versions=${1#--}
    shift
fi
source tools/environment.sh requirements-dev.txt "$versions"
unset PYTHONDONTWRITEBYTECODE # hundreds of processes import the same modules: compiled once

if [[ "${1:-}" == --lint ]]; then
    shift
    ruff check .
    ruff format --check .
    pyright
fi
if [[ "${1:-}" == --fast ]]; then
    shift
    set -- tests/unit tests/golden -m "not slow" "$@"
fi
python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
