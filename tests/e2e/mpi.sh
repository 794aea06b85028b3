#!/usr/bin/env bash
# Ranks as processes under mpirun: the same bits as rank threads; a SIGTERM saves; a killed rank ends
# the others with one clear error and leaves the checkpoints whole.
. "$(dirname "$0")/lib.sh"
if ! command -v mpirun > /dev/null; then
    echo "skipped: no mpirun on this machine"
    exit 77
fi
root=()
[ "$(id -u)" -eq 0 ] && root=(--allow-run-as-root)
processes() { # RANKS DUMP_FOLDER OPTIONS...: output in DUMP_FOLDER.log
    local ranks=$1 dump=$2
    shift 2
    mpirun "${root[@]}" --oversubscribe --enable-recovery -n "$ranks" "$EXPAR" train \
        --job.config_file tiny.toml --job.dump_folder "$dump" --job.threads_per_rank 1 \
        --comm.train_timeout_seconds 10 "$@" > "$dump.log" 2>&1
    rc=$?
}
processes 2 probe --training.steps 1
if grep -q "no MPI" probe.log; then
    echo "skipped: $(grep -m 1 'no MPI' probe.log)"
    exit 77
fi
same() { # A B STEP
    for file in "$1/checkpoint/step-$3"/*.safetensors; do
        cmp "$file" "$2/checkpoint/step-$3/$(basename "$file")" || fail "$1 and $2 differ"
    done
}
ep=(--parallelism.expert_parallel_degree 2 --training.global_batch_size 8)
train 2 threads "${ep[@]}"
expect_rc 0 "threads"
processes 2 processes "${ep[@]}"
expect_rc 0 "processes"
same threads processes 20
expect_text processes.log "^done: step 20 of 20"
[ "$(grep -c '^done:' processes.log)" -eq 1 ] || fail "more than one rank speaks"

# Stopped by mpirun's SIGTERM, then resumed as threads.
long=("${ep[@]}" --training.steps 100000 --checkpoint.interval 20 --lr_scheduler.warmup_steps 90000)
wait_for_steps() { # DUMP_FOLDER
    for _ in $(seq 400); do
        [ -d "$1/checkpoint/step-20" ] && return
        sleep 0.05
    done
    fail "$1 does not get to step 20"
}
processes 2 stopped "${long[@]}" &
job=$!
wait_for_steps stopped
pkill -TERM -P "$(pgrep -P $job -x mpirun)" -x expar || fail "no ranks to stop"
wait $job
expect_text stopped.log "^stopped: step"
[ "$(grep -c '^error:' stopped.log)" -eq 0 ] || fail "an error after SIGTERM"

# One rank killed: the other says which one is gone, in time, and what was saved can be read.
processes 2 killed "${long[@]}" &
job=$!
wait_for_steps killed
began=$SECONDS
kill -KILL "$(pgrep -P "$(pgrep -P $job -x mpirun)" -x expar | tail -n 1)"
wait $job
[ $((SECONDS - began)) -le 15 ] || fail "the other rank waited $((SECONDS - began)) s"
expect_text killed.log "^error: .*rank [01]"
saved=$(ls -d killed/checkpoint/step-* | sed 's/.*step-//' | sort -n | tail -n 1)
train 1 killed "${long[@]}" --training.steps $((saved + 2)) --parallelism.expert_parallel_degree 1
expect_rc 0 "after the kill"
expect_text killed.log "resume: killed/checkpoint/step-$saved"

# Twice SIGTERM, where a rank waits for one that cannot react: the first is answered, the second ends it.
processes 2 twice "${long[@]}" &
job=$!
wait_for_steps twice
mapfile -t ranks < <(pgrep -P "$(pgrep -P $job -x mpirun)" -x expar)
[ ${#ranks[@]} -eq 2 ] || fail "not two ranks"
tr '\0' '\n' < "/proc/${ranks[0]}/environ" | grep -qx 'OMPI_COMM_WORLD_RANK=0' || ranks=("${ranks[1]}" "${ranks[0]}")
kill -STOP "${ranks[1]}"
sleep 0.3
kill -TERM "${ranks[0]}"
sleep 1.6 # a second signal counts from 1 s after the first, as the rank saw it
kill -0 "${ranks[0]}" || fail "one SIGTERM ended a rank that could not save"
kill -TERM "${ranks[0]}"
for _ in $(seq 25); do
    kill -0 "${ranks[0]}" 2> /dev/null || break
    sleep 0.1
done
kill -0 "${ranks[0]}" 2> /dev/null && fail "a rank outlives two SIGTERM by 2.5 s"
kill -CONT "${ranks[1]}"
wait $job
expect_text twice.log "SIGTERM twice: the run is stopped at once"
pgrep -f "dump_folder twice" && fail "a rank is left"
echo ok
