#!/usr/bin/env bash
# Run one file of tests with a Python that has torch. usage: [PYTHON=python3] tests/python/run.sh tests/python/test_moe.py [ARGS]
# Exit code 77: there is no torch.
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
has_torch() { "$1" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null; }
for python in ${PYTHON:-/usr/bin/python3 python3}; do
    if has_torch "$python"; then
        PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$folder/../../python:$folder${PYTHONPATH:+:$PYTHONPATH}" \
            exec "$python" -W error::ResourceWarning "$1" "${@:2}"
    fi
done
echo "skipped: no Python here has torch (Debian: python3-torch; scripts/setup.sh --tests installs it)"
exit 77
