#!/usr/bin/env bash
# Configure and build what is missing. usage: [XP_CUDA=off] [XP_CUDA_ARCHS="90a"] [TARGETS="expar"] scripts/build.sh [PRESET]      (default release)
# XP_CUDA and XP_CUDA_ARCHS also change a folder that is configured already.
# Prints one line while there is work to do; the whole log only when the build fails.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
folder=build/$preset
log=$folder/build.log
mkdir -p "$folder"

fail() {
    grep -E -B2 -A12 'error|Error|FAILED' "$log" | head -n 60 >&2 || tail -n 40 "$log" >&2
    echo "error: the build failed; the whole log is in $log" >&2
    exit 1
}
if [ ! -f "$folder/build.ninja" ] || [ -n "${XP_CUDA:-}${XP_CUDA_ARCHS:-}" ]; then
    echo "configuring ($preset)"
    cmake --preset "$preset" ${XP_CUDA:+-DXP_CUDA=$XP_CUDA} ${XP_CUDA_ARCHS:+-DXP_CUDA_ARCHS="$XP_CUDA_ARCHS"} >"$log" 2>&1 || fail
fi
program=$folder/bin/expar
if [ ! -e "$program" ] || [ -n "$(find CMakeLists.txt cmake src cli include tests examples bench -newer "$program" -type f -print -quit 2>/dev/null)" ]; then
    echo "building ($preset); the first time takes about a minute"
fi
ninja -C "$folder" ${TARGETS:-} >"$log" 2>&1 || fail
touch -c "$program" # what was looked at is built, also where the program itself did not change
