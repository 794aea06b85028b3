#!/usr/bin/env bash
# On a machine with GPUs `expar train` starts a process for each: how many, which GPU each opens, and what is said without MPI.
# The GPUs are a fake backend that writes down who opens what.
. "$(dirname "$0")/lib.sh"
if ! command -v mpirun > /dev/null; then
    echo "skipped: no mpirun on this machine"
    exit 77
fi
for backend in "$(dirname "$EXPAR")"/../lib*/libexpar_cuda.so "$(dirname "$EXPAR")"/libexpar_cuda.so; do
    [ -e "$backend" ] || continue
    echo "skipped: the real CUDA backend would be found first"
    exit 77
done
export LD_LIBRARY_PATH=$FAKE_GPUS_FOLDER FAKE_GPU_LOG=$WORK/log TMPDIR=$WORK/t
mkdir -p t
# run NGPU-OR-NOTHING GPUS RANKS [OPTIONS]: $rc, run.log, and $opened: "index:ranks ..." of the GPUs that were opened
run() {
    local ngpu=$1 gpus=$2 ranks=$3
    shift 3
    rm -rf log run && mkdir log
    NGPU=$ngpu FAKE_GPUS=$gpus FAKE_RANKS=$ranks "$EXPAR" train --job.config_file tiny.toml --job.dump_folder run --training.dtype float32 "$@" > run.log 2>&1
    rc=$?
    opened=$(ls log | sed 's/-.*//' | sort -n | uniq -c | awk '{ printf "%s%s:%s", n++ ? " " : "", $2, $1 }')
    n_processes=$(ls log | cut -d- -f2 | sort -u | wc -l)
    [ -z "$(ls t)" ] || fail "something is left: $(ls t)"
}
expect() { # GPUS-OPENED PROCESSES WHAT: every run ends with the error of a fake GPU
    expect_rc 1 "$3"
    [ "$opened" = "$1" ] || fail "$3: GPUs $opened were opened instead of $1"
    [ "$n_processes" = "$2" ] || fail "$3: $n_processes processes opened them instead of $2"
    [ "$(grep -c '^error: .*is a fake and cannot train' run.log)" = 1 ] || fail "$3: not one error"
}
all=(--training.global_batch_size 16)
run '' 4 4 "${all[@]}"
expect "0:1 1:1 2:1 3:1" 4 "all GPUs"
run '' 8 8 "${all[@]}" --parallelism.expert_parallel_degree 8
expect "0:1 1:1 2:1 3:1 4:1 5:1 6:1 7:1" 8 "all 8 GPUs"
run 2 4 2 "${all[@]}"
expect "0:1 1:1" 2 "two of four GPUs"
run '' 1 1 "${all[@]}"
expect "0:1" 1 "one GPU"
run 4 2 4 "${all[@]}"
expect "0:2 1:2" 1 "more ranks than GPUs: threads that share them"
run 4 2 4 "${all[@]}" --job.ranks processes
expect "0:2 1:2" 4 "more ranks than GPUs, as processes"
run 2 2 2 "${all[@]}" --job.ranks threads
expect "0:1 1:1" 1 "threads with a GPU each"

run '' 2 2 --parallelism.expert_parallel_degree 8
expect_rc 2 "a degree above the number of GPUs"
expect_text run.log "there are 2 GPUs: set NGPU=8"
run 2 2 2 "${all[@]}" --training.backend cpu
expect_rc 0 "the CPU of a machine with GPUs"
[ "$n_processes" = 0 ] || fail "a run on the CPU opened a GPU"
# The benches start ranks in the same way. bench NGPU-OR-NOTHING GPUS RANKS KIND [OPTIONS]
bench() {
    local ngpu=$1 gpus=$2 ranks=$3
    shift 3
    rm -rf log && mkdir log
    NGPU=$ngpu FAKE_GPUS=$gpus FAKE_RANKS=$ranks "$EXPAR" bench "$@" > run.log 2>&1
    rc=$?
    opened=$(ls log | sed 's/-.*//' | sort -n | uniq -c | awk '{ printf "%s%s:%s", n++ ? " " : "", $2, $1 }')
    n_processes=$(ls log | cut -d- -f2 | sort -u | wc -l)
    [ -z "$(ls t)" ] || fail "something is left: $(ls t)"
    expect_text run.log "is a fake and cannot train"
    expect_rc 1 "$*"
}
expect_bench() { # GPUS-OPENED PROCESSES WHAT
    [ "$opened" = "$1" ] || fail "$3: GPUs $opened were opened instead of $1"
    [ "$n_processes" = "$2" ] || fail "$3: $n_processes processes opened them instead of $2"
}
bench '' 4 4 ep --tokens 64
expect_bench "0:1 1:1 2:1 3:1" 4 "bench ep on all GPUs"
bench 3 4 3 ep --tokens 64 --experts 96
expect_bench "0:1 1:1 2:1" 3 "bench ep with NGPU=3"
bench '' 4 2 ep --tokens 64 --ranks 2
expect_bench "0:1 1:1" 2 "bench ep on two of four GPUs"
bench '' 2 2 ep --tokens 64 --routing random --job.ranks threads
expect_bench "0:1 1:1" 1 "bench ep, threads with a GPU each"
bench '' 2 4 ep --tokens 64 --ranks 4 --job.ranks processes
expect_bench "0:2 1:2" 4 "bench ep, processes that share GPUs"
bench '' 2 2 scaling --config tiny.toml --ranks 2 --batch 1 --mode weak --steps 1 --warmup 1 --training.dtype float32
expect_bench "0:1 1:1" 2 "bench scaling"
FAKE_GPUS=2 "$EXPAR" bench ep --device cpu --ranks 2 --tokens 8 --dim 8 --top-k 2 --seconds 0.01 > run.log 2>&1
rc=$?
expect_rc 0 "bench ep on the CPU of a machine with GPUs"
mkdir none
PATH=$WORK/none "$(command -v env)" FAKE_GPUS=2 "$EXPAR" train --job.config_file tiny.toml --training.dtype float32 "${all[@]}" > run.log 2>&1
rc=$?
expect_rc 1 "no mpirun"
expect_text run.log "^error: .*apt-get install openmpi-bin"
[ "$(grep -c '^error' run.log)" = 1 ] || fail "no mpirun: more than one error"

# A copy of the program without libexpar_mpi.so.
libraries=$(ldd "$EXPAR" | sed -n 's/.*libexpar\.so\.0 => \([^ ]*\)\/libexpar.*/\1/p')
mkdir -p copy/bin copy/lib && cp "$EXPAR" copy/bin/ && cp "$libraries/libexpar.so.0" copy/lib/
LD_LIBRARY_PATH=$WORK/copy/lib:$FAKE_GPUS_FOLDER FAKE_GPUS=2 copy/bin/expar train --job.config_file tiny.toml --training.dtype float32 \
    "${all[@]}" > run.log 2>&1
rc=$?
if grep -q "^error: no MPI: libexpar_mpi.so" run.log; then # else the build's own folder is in the program's search path
    expect_rc 1 "no libexpar_mpi"
    [ "$(grep -c '^error' run.log)" = 1 ] || fail "no libexpar_mpi: more than one error"
fi
echo ok
