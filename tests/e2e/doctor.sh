#!/usr/bin/env bash
# expar doctor on machines that are whole and broken: each "no" has a remedy, what is needed and does not work is exit code 1, and the output stays
# short. Drivers, libraries, GPUs and the size of /dev/shm are fakes that the loader finds.
. "$(dirname "$0")/lib.sh"
command -v python3 > /dev/null || { echo "skipped: no python3 to read JSON with"; exit 77; }
mkdir -p driver out
ln -s "$FAKE_DRIVER" driver/libcuda.so.1
ln -s "$FAKE_DRIVER" driver/libnvidia-ml.so.1
export ASAN_OPTIONS="${ASAN_OPTIONS:+$ASAN_OPTIONS:}verify_asan_link_order=0"
# check RC JSON-EXPRESSION [OPTIONS]: as JSON with that exit code, where `f(NAME)` is a finding; with TEXT in the environment also as text,
# on a screen of 44 lines of 112 columns.
check() {
    local wanted=$1 expression=$2
    shift 2
    timeout 60 "$EXPAR" doctor --job.dump_folder out --no-mpirun --json "$@" > doctor.json 2> doctor.err
    rc=$?
    expect_rc "$wanted" "doctor --json $*: $expression"
    python3 - "$expression" << 'PY' || fail "not ($expression): $(cat doctor.json)"
import json, sys
d = json.load(open("doctor.json"))
f = lambda name: next(x for x in d["findings"] if x["name"] == name)
has = lambda name: any(x["name"] == name for x in d["findings"])
broken = [x["name"] for x in d["findings"] if x["needed"]]
assert all(x["ok"] or x.get("advice") for x in d["findings"]), "a no without a remedy"
assert d["can_train"] == (not broken)
sys.exit(0 if eval(sys.argv[1]) else 1)
PY
    [ -z "$(ls -A out)" ] || fail "something was left in the dump folder"
    [ -n "${TEXT:-}" ] || return 0
    timeout 60 "$EXPAR" doctor --job.dump_folder out --no-mpirun "$@" > doctor.log 2> doctor.err
    rc=$?
    expect_rc "$wanted" "doctor $*"
    [ "$(wc -l < doctor.log)" -le 44 ] || fail "$(wc -l < doctor.log) lines"
    [ "$(wc -L < doctor.log)" -le 112 ] || fail "a line of $(wc -L < doctor.log) columns"
}
# with VARIABLES... -- RC EXPRESSION [OPTIONS]
with() {
    local variables=()
    while [ "$1" != -- ]; do
        variables+=("$1")
        shift
    done
    shift
    for variable in "${variables[@]}"; do export "${variable?}"; done
    check "$@"
    for variable in "${variables[@]}"; do unset "${variable%%=*}"; done
}

# ---- this machine as it is
began=$SECONDS
TEXT=1 check "$("$EXPAR" doctor --no-mpirun > /dev/null 2>&1; echo $?)" "f('disk')['ok'] and f('dump folder')['ok'] and f('limits') and f('/dev/shm')"
[ $((SECONDS - began)) -lt 60 ] || fail "the doctor takes $((SECONDS - began)) s"
expect_text doctor.log "MB/s written and synced"
if command -v mpirun > /dev/null && [ -n "${MPIRUN:-}" ]; then
    # Open MPI itself leaves memory behind
    ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 timeout 60 "$EXPAR" doctor --job.dump_folder out --ranks 3 > doctor.log 2>&1
    rc=$?
    expect_rc 0 "doctor --ranks 3"
    expect_text doctor.log "yes  processes (mpirun) \+3 processes on 1 node agree on a sum"
    # no mpirun, and one that fails: a "no" on the CPU, broken where it was asked for
    mkdir -p failing
    printf '#!/bin/sh\necho "There are not enough slots available"\nexit 1\n' > failing/mpirun
    chmod +x failing/mpirun
    for path in /nowhere "$PWD/failing:$PATH"; do
        for ranks in "" "--ranks 2"; do
            # shellcheck disable=SC2086
            PATH=$path "$EXPAR" doctor --job.dump_folder out $ranks > doctor.log 2>&1
            rc=$?
            expect_rc $([ -z "$ranks" ] && echo 0 || echo 1) "PATH=$path doctor $ranks"
            expect_text doctor.log "processes (mpirun) \+\(there is no mpirun\|There are not enough slots\)"
            expect_text doctor.log "-> \(apt-get install openmpi-bin\|run it by hand: mpirun\)"
        done
    done
    if [ -n "${XP_TEST_LONG:-}" ]; then
        printf '#!/bin/sh\nsleep 100\n' > failing/mpirun
        PATH=$PWD/failing:$PATH "$EXPAR" doctor --job.dump_folder out > doctor.log 2>&1
        expect_text doctor.log "no answer within 30 s"
    fi
fi

# ---- OpenBLAS with kernels of an older CPU
if grep -q avx2 /proc/cpuinfo; then
    with OPENBLAS_CORETYPE=Prescott -- 0 "not f('BLAS')['ok'] and 'export OPENBLAS_CORETYPE=' in f('BLAS')['advice']"
    with OPENBLAS_CORETYPE=Haswell -- 0 "f('BLAS')['ok']"
    (unset OPENBLAS_CORETYPE && check 0 "f('BLAS')['ok']") || exit 1 # the program starts OpenBLAS with what fits
fi

# ---- the dump folder: not there yet, a file, a place where nobody can write
check 0 "'is made by the run' in f('dump folder')['text']" --job.dump_folder out/new/run
check 1 "broken == ['dump folder'] and 'proc' in f('dump folder')['text'] and 'job.dump_folder' in f('dump folder')['advice']" \
    --job.dump_folder /proc/run
echo > file
check 1 "broken == ['dump folder']" --job.dump_folder file

# ---- limits and shared memory of a machine without GPUs: a "no", and it can train
(ulimit -n 256 && check 0 "not f('limits')['ok'] and 'ulimit -n' in f('limits')['advice']") || exit 1
with LD_PRELOAD="$FAKE_DRIVER" FAKE_SHM_MIB=32 -- 0 "not f('/dev/shm')['ok'] and '32 MiB' in f('/dev/shm')['text'] and 'shm-size' in f('/dev/shm')['advice']"
with LD_PRELOAD="$FAKE_DRIVER" FAKE_SHM_MIB=0 -- 0 "not f('/dev/shm')['ok']"
with LD_PRELOAD="$FAKE_DRIVER" FAKE_SHM_MIB=128 -- 0 "f('/dev/shm')['ok']"

"$EXPAR" doctor --json --no-mpirun --job.dump_folder out > here.json 2> doctor.err
if grep -q '"n_gpus": [1-9]' here.json; then
    echo "ok; the rest is for machines without GPUs"
    exit 0
fi
# ---- a driver that is too old, one without GPUs, one that is fine while this build has no backend for it
old=(LD_LIBRARY_PATH="$PWD/driver" FAKE_CUDA_VERSION=12040)
with "${old[@]}" -- 1 "'NVIDIA driver' in broken and 'CUDA 12.4, and 13.0 is needed' in f('NVIDIA driver')['text'] and '580' in f('NVIDIA driver')['advice']"
with "${old[@]}" FAKE_CUDA_GPUS=0 -- 0 "not f('NVIDIA driver')['ok'] and 'no GPU' in f('NVIDIA driver')['text']"
if [ -e "$(dirname "$EXPAR")/../lib/libexpar_cuda.so" ]; then
    with "${old[@]}" -- 1 "broken == ['NVIDIA driver'] and 'built in' in f('CUDA backend')['advice']"
else
    with LD_LIBRARY_PATH="$PWD/driver" -- 1 "f('NVIDIA driver')['ok'] and broken == ['CUDA backend'] and 'build again' in f('CUDA backend')['advice']"
fi

if [ -e "$(dirname "$EXPAR")/../lib/libexpar_cuda.so" ]; then
    echo "ok; without the fake GPUs: the real backend comes first"
    exit 0
fi
# ---- GPUs that work, and what can be missing beside them
[ -n "${MPIRUN:-}" ] || { echo "ok; without the fake GPUs: this build has no MPI, and ranks with a GPU each are processes"; exit 0; }
gpus=(LD_LIBRARY_PATH="$PWD/driver:$FAKE_HEALTHY_FOLDER" FAKE_NVLINKS=18)
two=("${gpus[@]}" FAKE_GPUS=2)
with "${two[@]}" TEXT=1 -- 0 "f('ops (GPU)')['text'].endswith('in 5 ops, bf16, on 2 GPUs') and f('attention (GPU)')['text'].endswith('bf16, on 2 GPUs') and d['n_gpus'] == 2 and f('GPUs')['text'].startswith('0 to 1: Fake GPU') and f('NVLink')['text'].startswith('18 links') and f('peer access')['ok']"
expect_text doctor.log "This machine can train on 2 GPUs"
expect_text doctor.log "from.to      0      1"
expect_text doctor.log "      0      .    268"
with "${gpus[@]}" FAKE_GPUS=8 TEXT=1 -- 0 "d['n_gpus'] == 8"
expect_text doctor.log "      7    268    268    268    268    268    268    268      \."
with "${gpus[@]}" FAKE_GPUS=1 -- 0 "f('GPU')['ok'] and not has('peer access') and not has('copies')"
# each GPU computes, in a process of its own: what happens there does not end the doctor
with "${two[@]}" FAKE_WRONG=1 -- 1 "broken == ['ops (GPU)'] and 'RMSNorm is wrong: the largest difference' in f('ops (GPU)')['text'] and f('attention (GPU)')['ok']"
with "${two[@]}" FAKE_CUDNN_FAILS=1 -- 0 "not f('attention (GPU)')['ok'] and 'cuda:0 (CUDNN_STATUS_FAKE)' in f('attention (GPU)')['text']"
with "${two[@]}" -- 0 "not has('ops (GPU)') and not has('attention (GPU)')" --no-gpus
with "${gpus[@]}" FAKE_GPUS=1 FAKE_DIES=1 -- 1 "broken == ['ops (GPU)'] and 'ended by signal 10' in f('ops (GPU)')['text'] and not has('attention (GPU)')"
with "${two[@]}" FAKE_MIXED=1 -- 0 "f('GPU')['text'].startswith('0: Fake GPU,') and not has('GPUs')" --no-gpus
with "${two[@]}" FAKE_MISSING=cublas -- 1 "broken == ['cuBLASLt'] and 'libcublas' in f('cuBLASLt')['advice']" --no-gpus
with "${two[@]}" FAKE_MISSING=cudnn -- 0 "f('attention (GPU)')['text'].startswith('own kernels agree') and not f('cuDNN')['ok'] and 'libcudnn9' in f('cuDNN')['advice']"
with "${two[@]}" FAKE_MISSING=nccl -- 1 "broken == ['NCCL'] and '2.28' in f('NCCL')['advice']" --no-gpus
with "${gpus[@]}" FAKE_GPUS=1 FAKE_MISSING=nccl -- 0 "not f('NCCL')['ok']" --no-gpus
with "${two[@]}" FAKE_APART=1 -- 0 "not f('peer access')['ok'] and 'standard' in f('peer access')['advice'] and '0 to 1, 1 to 0' in f('peer access')['text']" --no-gpus
with "${two[@]}" FAKE_FULL=1 -- 0 "not f('copies')['ok'] and 'no memory left' in f('copies')['text'] and f('ops (GPU)')['text'] == 'cuda:0 has no memory left; 2 GPUs of 2 fail' and 'nvidia-smi' in f('ops (GPU)')['advice']"
with "${two[@]}" FAKE_NVLINKS=0 -- 0 "not f('NVLink')['ok'] and 'topo' in f('NVLink')['advice']" --no-gpus
with "${two[@]}" LD_PRELOAD="$FAKE_DRIVER" FAKE_SHM_MIB=64 -- 1 "broken == ['/dev/shm'] and '192' in f('/dev/shm')['text']" --no-gpus
if command -v mpirun > /dev/null; then
    env "${two[@]}" PATH=/nowhere "$EXPAR" doctor --job.dump_folder out > doctor.log 2>&1
    rc=$?
    expect_rc 1 "two GPUs without mpirun"
    expect_text doctor.log "NO   processes (mpirun) \+there is no mpirun"
    # ranks with a GPU each: sums, rows to experts and back; and ranks that find theirs broken
    export ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0
    env "${two[@]}" "$EXPAR" doctor --job.dump_folder out > doctor.log 2>&1
    rc=$?
    expect_rc 0 "two GPUs with mpirun"
    expect_text doctor.log "yes  all-reduce (GPUs) \+2 ranks on GPUs agree on a sum"
    expect_text doctor.log "yes  expert exchange (GPUs) \+rows went to 2 ranks on GPUs and back, p2p and a2a"
    env "${two[@]}" FAKE_LOST=1 "$EXPAR" doctor --job.dump_folder out > doctor.log 2>&1
    rc=$?
    expect_rc 1 "two GPUs, one of them lost"
    expect_text doctor.log "yes  processes (mpirun) \+2 processes on 1 node agree on a sum"
    expect_text doctor.log "NO   all-reduce (GPUs) \+.*fell off the bus"
    expect_no doctor.log "expert exchange (GPUs)"
    env "${two[@]}" "$EXPAR" doctor --job.dump_folder out --ranks 3 > doctor.log 2>&1
    rc=$?
    expect_rc 0 "three processes, two GPUs"
    expect_no doctor.log "(GPUs)"
fi
echo "ok"
