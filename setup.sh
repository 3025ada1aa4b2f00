# Sourced by exp.sh, trial.sh, gpu.sh and test.sh: leaves $PYTHON, a Python that has everything in the requirement
# files named in $NEEDS. That is python3 as it is where it has them already, otherwise .venv, which
# is made or completed. PYTHON=... in the environment is taken as given.

has_needs() {
    "$1" - $NEEDS <<'PY' 2>/dev/null
import re, sys
from importlib.metadata import version

if sys.version_info < (3, 10):
    sys.exit(1)
numbers = lambda text: [int(n) for n in re.findall(r"\d+", text)[:3]]
for path in sys.argv[1:]:
    for line in open(path):
        if line[0].isalpha():
            name, floor = re.match(r"([\w.-]+)[>=]=(.*)", line).groups()
            if numbers(version(name)) < numbers(floor):
                sys.exit(1)
PY
}

if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null || {
        echo "error: there is no $PYTHON, which PYTHON names" >&2
        exit 2
    }
    has_needs "$PYTHON" || echo "note: $PYTHON, which PYTHON names, lacks something in $NEEDS, or has it older" >&2
elif has_needs python3; then
    PYTHON=python3
else
    PYTHON=.venv/bin/python
    if ! has_needs "$PYTHON"; then
        echo "setting up .venv (PyTorch and what it needs: some minutes, 6 GB)" >&2
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
            echo "error: Python 3.10 or newer is needed as python3" >&2
            exit 2
        }
        python3 -m venv .venv
        for file in $NEEDS; do
            "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$file"
        done
    fi
fi
