#!/bin/sh
# The tests: `sh test.sh`, or `sh test.sh tests/test_engine.py -k resume` for some of them.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")"
NEEDS="requirements.txt requirements-dev.txt"
. ./setup.sh
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest -q -n 2 --dist worksteal "$@"
