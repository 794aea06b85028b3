#!/usr/bin/env bash
# A wheel with the libraries of a build folder inside; needs no network.
# usage: [EXPAR_BUILD=build/release] [PYTHON=python3] python/build_wheel.sh [OUTPUT_FOLDER]     (default build/wheel)
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
"$python" -c 'import setuptools
try: import wheel
except ImportError: import setuptools.command.bdist_wheel' 2>/dev/null || {
    echo "error: $python lacks setuptools or wheel (Debian: python3-setuptools python3-wheel); PYTHON names another Python" >&2
    exit 1
}
output=${1:-$top/build/wheel}
mkdir -p "$output"
output=$(cd "$output" && pwd)
if [ -n "${EXPAR_BUILD:-}" ]; then EXPAR_BUILD=$(cd "$EXPAR_BUILD" && pwd) && export EXPAR_BUILD; fi
copy=$(mktemp -d) # setuptools builds inside the source folder; the checkout stays as it is
trap 'rm -rf "$copy"' EXIT
mkdir -p "$copy/include"
cp -r "$top/python" "$copy/python"
cp -r "$top/include/expar" "$copy/include/expar"
ln -s "$top/build" "$copy/build"
cd "$copy/python"
rm -rf build ./*.egg-info
"$python" setup.py -q bdist_wheel --dist-dir "$output"
ls "$output"/expar-*.whl
