#!/usr/bin/env bash
# Build what is missing and run every test that this machine can run.
#
#   ./run_tests.sh                 all tests (skipped ones say why)
#   ./run_tests.sh --long          with the long variants (soak, 100 random kills, ...)
#   ./run_tests.sh -L unit         arguments go to ctest: labels unit, checkop, ep, parity, dist, e2e, faults, fuzz; -j1: one at a time
#   PRESET=asan ./run_tests.sh     another build (release, debug, asan, tsan, cuda)
set -euo pipefail
cd "$(dirname "$0")"
args=()
for arg in "$@"; do
    case $arg in
    --long) export XP_TEST_LONG=1 ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) args+=("$arg") ;;
    esac
done
preset=${PRESET:-release}
scripts/setup.sh
scripts/build.sh "$preset"
. scripts/test_blas.sh
jobs=$(nproc)
exec ctest --test-dir "build/$preset" -j "$((jobs < 8 ? jobs : 8))" --output-on-failure --no-tests=error "${args[@]}"
