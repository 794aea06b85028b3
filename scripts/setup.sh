#!/usr/bin/env bash
# Install what expar needs to build, run and be tested on Debian or Ubuntu. Quick when nothing is missing.
# usage: scripts/setup.sh [--tests]     --tests: also what only the tests and checks need
set -euo pipefail

build=(gcc cmake ninja-build pkg-config libc6-dev libjansson-dev libpcre2-dev libutf8proc-dev zlib1g-dev
    libzstd-dev libxxhash-dev libopenblas-pthread-dev libopenmpi-dev openmpi-bin libcmocka-dev)
tests=(clang-format g++ python3 zstd xxhash)
# the pages of expar report (115 MB); Ubuntu has Chromium as a snap only, and there the test says that it is skipped.
# the PyTorch package (207 MB to download, 894 MB installed); without it its tests say that they are skipped
if grep -qx 'ID=debian' /etc/os-release 2>/dev/null; then
    tests+=(chromium python3-torch python3-setuptools python3-pip python3-wheel)
fi

wanted=("${build[@]}")
for arg in "$@"; do
    case $arg in
    --tests) wanted+=("${tests[@]}") ;;
    -h | --help) sed -n '2,3s/^# //p' "$0"; exit 0 ;;
    *) echo "error: unknown argument $arg; see scripts/setup.sh --help" >&2; exit 2 ;;
    esac
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "error: scripts/setup.sh knows Debian and Ubuntu only. Install the equivalents of: ${wanted[*]}" >&2
    exit 1
fi

missing=()
for package in "${wanted[@]}"; do
    case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true) in
    "install ok installed" | "hold ok installed") ;;
    *) missing+=("$package") ;;
    esac
done
[ ${#missing[@]} -eq 0 ] && exit 0

exec "$(dirname "$0")/apt_install.sh" "${missing[@]}"
