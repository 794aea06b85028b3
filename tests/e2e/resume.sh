#!/usr/bin/env bash
# 20 steps straight equal 10 + resume + 10, bit for bit: 1 rank, 2 ranks with accumulation, and
# expert parallelism; also when the stop is a SIGTERM.
. "$(dirname "$0")/lib.sh"

compare() { # NAME RANKS OPTIONS...
    local name=$1 ranks=$2
    shift 2
    train "$ranks" "$name-a" "$@"
    expect_rc 0 "$name straight"
    train "$ranks" "$name-b" --training.steps 10 --lr_scheduler.total_steps 20 "$@"
    expect_rc 0 "$name first half"
    train "$ranks" "$name-b" --lr_scheduler.total_steps 20 "$@"
    expect_rc 0 "$name second half"
    expect_text "$name-b.log" "resume: $name-b/checkpoint/step-10"
    for file in "$name-a"/checkpoint/step-20/*.safetensors; do
        cmp "$file" "$name-b/checkpoint/step-20/$(basename "$file")" || fail "$name: $file differs"
    done
    [ "$(wc -l < "$name-b/metrics.jsonl")" -eq 20 ] || fail "$name: metrics.jsonl has not 20 lines"
    [ "$(metric "$name-a" 20 loss)" = "$(metric "$name-b" 20 loss)" ] || fail "$name: losses differ"
}
compare one 1
compare accumulate 2 --training.global_batch_size 12
compare experts 2 --parallelism.expert_parallel_degree 2 --checkpoint.async_mode disabled

# The same run again says that it is complete, and how to go on.
cp -r one-a/checkpoint before
train 1 one-a
expect_rc 0 "complete run"
expect_text one-a.log "this run is complete: step 20 of 20"
expect_text one-a.log "--training.steps 40"
diff -r before one-a/checkpoint || fail "a complete run's checkpoints changed"

# SIGTERM: the step is finished and saved, the exit code is 0, and the rest gives the same bits.
NGPU=2 "$EXPAR" train --job.config_file tiny.toml --job.dump_folder term --job.threads_per_rank 1 \
    --training.steps 3000 --checkpoint.interval 100000 --lr_scheduler.warmup_steps 2900 > term.log 2>&1 &
pid=$!
for _ in $(seq 200); do
    [ -s term/metrics.jsonl ] && break
    sleep 0.05
done
kill -TERM $pid
wait $pid
rc=$?
expect_rc 0 "after SIGTERM"
expect_text term.log "SIGTERM"
expect_text term.log "stopped: step"
saved=$(basename "$(ls -d term/checkpoint/step-*)")
at=${saved#step-}
[ "$(grep -c "term/checkpoint/step-$at" term.log)" -eq 1 ] || fail "the last checkpoint is not named once"
expect_text term.log "^to go on: the same command resumes from step-$at$"
[ "$at" -lt 3000 ] || fail "the run was not stopped"
more=$((at + 3))
train 2 term --training.steps $more --lr_scheduler.total_steps 3000 --lr_scheduler.warmup_steps 2900
expect_rc 0 "after the stop"
train 2 straight --training.steps $more --lr_scheduler.total_steps 3000 --lr_scheduler.warmup_steps 2900
expect_rc 0 "straight"
for file in straight/checkpoint/step-$more/*.safetensors; do
    cmp "$file" "term/checkpoint/step-$more/$(basename "$file")" || fail "$file differs after SIGTERM"
done
echo ok
