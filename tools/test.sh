#!/usr/bin/env bash
# Set up .venv and pass the tests: all that a newcomer needs. `--lint` checks style and types first, as CI does;
# other arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh requirements-dev.txt

if [[ "${1:-}" == --lint ]]; then
    shift
    ruff check .
    ruff format --check .
    pyright
fi
python -m pytest "$@"
