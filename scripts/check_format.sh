#!/usr/bin/env bash
# Refuse C and CUDA files that clang-format would change. usage: scripts/check_format.sh [--fix]
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t files < <(git ls-files '*.c' '*.h' '*.cu' '*.cuh')
if [ "${1:-}" = --fix ]; then
    exec clang-format -i "${files[@]}"
fi
clang-format --dry-run -Werror "${files[@]}" || {
    echo "error: run scripts/check_format.sh --fix" >&2
    exit 1
}
echo "format: ok (${#files[@]} files)"
