#!/usr/bin/env bash
# A run that is stopped and started again writes the same checkpoint folders, byte for byte, as one
# that never stopped: at the end of its steps or by a signal, on token files and on shuffled text,
# with accumulation, expert parallelism, document attention and an auxiliary loss.
. "$(dirname "$0")/lib.sh"

for i in $(seq 400); do
    printf '{"text": "%d: the %d people went up to the city on day %d"}\n' "$i" $((i * i % 97)) $((i * 31 % 365))
done > text.jsonl
"$EXPAR" tokenizer-train text.jsonl --vocab 400 --out tok > tok.log 2>&1 || fail "tokenizer-train"

same_folder() { # A B WHAT
    diff -r "$1" "$2" > diff.log || { head -n 3 diff.log; fail "$3: $1 and $2 differ"; }
}
# straight NAME RANKS OPTIONS: 20 steps in NAME-a; halves: 10 and 10 in NAME-b.
compare() {
    local name=$1 ranks=$2
    shift 2
    train "$ranks" "$name-a" --lr_scheduler.total_steps 20 "$@"
    expect_rc 0 "$name straight"
    train "$ranks" "$name-b" --lr_scheduler.total_steps 20 "$@" --training.steps 10
    expect_rc 0 "$name first half"
    train "$ranks" "$name-b" --lr_scheduler.total_steps 20 "$@"
    expect_rc 0 "$name second half"
    expect_text "$name-b.log" "resume: $name-b/checkpoint/step-10"
    same_folder "$name-a/checkpoint/step-20" "$name-b/checkpoint/step-20" "$name"
    for step in 11 20; do
        for key in loss grad_norm lr tokens_seen rows_seen; do
            [ "$(metric "$name-a" $step $key)" = "$(metric "$name-b" $step $key)" ] || fail "$name: $key of step $step"
        done
    done
}
text="--training.dataset text --training.dataset_path text.jsonl --model.hf_assets_path tok"
compare one 1
compare accumulate 1 --training.global_batch_size 6
compare ranks 2 --training.global_batch_size 12
compare experts 2 --parallelism.expert_parallel_degree 2 --training.global_batch_size 8
compare deepep 4 --parallelism.expert_parallel_degree 2 --parallelism.expert_parallel_comm_backend deepep \
    --parallelism.expert_parallel_overlap
compare replicas 4 --parallelism.expert_parallel_degree 2 --parallelism.data_parallel_replicate_degree 2
compare text 1 $text
compare text2 2 $text --parallelism.expert_parallel_degree 2 --training.attention document --debug.seed 3
compare rows 2 --training.shuffle --moe.aux_loss_coeff 1e-2 --moe.z_loss_coeff 1e-4 \
    --activation_checkpoint.mode selective --checkpoint.async_mode disabled
expect_text text-a.log "^step: 20"
cmp -s text-a/checkpoint/step-20/rank-00000.safetensors one-a/checkpoint/step-20/rank-00000.safetensors &&
    fail "text and tokens give the same model: nothing was compared"

# Several epochs of shuffled text lie between the stop and the end.
train 1 epochs --lr_scheduler.total_steps 200 $text --training.steps 200 --training.local_batch_size 8 --metrics.log_freq 100
expect_rc 0 "epochs"
[ "$(metric epochs 200 rows_seen)" = 1600 ] || fail "rows_seen $(metric epochs 200 rows_seen)"
cp -r epochs epochs-b
rm -r epochs-b/checkpoint/step-200
train 1 epochs-b --lr_scheduler.total_steps 200 $text --training.steps 200 --training.local_batch_size 8 --metrics.log_freq 100
expect_rc 0 "epochs again"
expect_text epochs-b.log "resume: epochs-b/checkpoint/step-190"
same_folder epochs/checkpoint/step-200 epochs-b/checkpoint/step-200 "epochs"

# A signal ends the run in the middle: what follows is the same.
signal() { # SIGNAL NAME RANKS OPTIONS...
    local sent=$1 name=$2 ranks=$3 pid at more
    shift 3
    local schedule="--lr_scheduler.total_steps 5000 --lr_scheduler.warmup_steps 400 --checkpoint.interval 100000"
    NGPU=$ranks "$EXPAR" train --job.config_file tiny.toml --job.dump_folder "$name" --job.threads_per_rank 1 \
        $schedule "$@" --training.steps 5000 > "$name.log" 2>&1 &
    pid=$!
    for _ in $(seq 400); do
        [ -s "$name/metrics.jsonl" ] && break
        sleep 0.05
    done
    kill "-$sent" $pid
    wait $pid
    rc=$?
    expect_rc 0 "$name: SIG$sent"
    expect_text "$name.log" "SIG$sent"
    expect_text "$name.log" "stopped: step"
    at=$(ls "$name/checkpoint")
    at=${at#step-}
    [ "$at" -ge 1 ] && [ "$at" -lt 5000 ] || fail "$name: stopped at step $at"
    more=$((at + 2))
    train "$ranks" "$name" $schedule "$@" --training.steps $more
    expect_rc 0 "$name: the rest"
    expect_text "$name.log" "resume: $name/checkpoint/step-$at"
    train "$ranks" "$name-straight" $schedule "$@" --training.steps $more
    expect_rc 0 "$name: straight"
    same_folder "$name-straight/checkpoint/step-$more" "$name/checkpoint/step-$more" "$name"
    [ "$(wc -l < "$name/metrics.jsonl")" -eq $more ] || fail "$name: lines of metrics.jsonl"
}
signal TERM term 2 --training.global_batch_size 8
signal TERM term-text 2 $text --parallelism.expert_parallel_degree 2
signal INT int 1 $text
signal HUP hup 1
signal USR1 usr1 2

# nohup keeps SIGHUP from a run; what is not saved is not called so.
(trap '' HUP USR1; NGPU=1 exec "$EXPAR" train --job.config_file tiny.toml --job.dump_folder ignored --job.threads_per_rank 1 \
    --training.steps 100000 --checkpoint.no_enable --metrics.log_freq 1 > ignored.log 2>&1) &
pid=$!
for _ in $(seq 400); do [ -s ignored/metrics.jsonl ] && break; sleep 0.05; done
kill -HUP $pid; kill -USR1 $pid
at=$(wc -l < ignored/metrics.jsonl)
for _ in $(seq 400); do [ "$(wc -l < ignored/metrics.jsonl)" -gt $((at + 20)) ] && break; sleep 0.05; done
kill -0 $pid || fail "an ignored signal ended the run"
kill -INT $pid
wait $pid
rc=$?
expect_rc 0 "ignored signals, then SIGINT"
expect_no ignored.log "SIGHUP"
expect_text ignored.log "SIGINT: this step is finished (checkpoint.enable is off: nothing is saved)"
expect_no ignored.log "and saved"
echo ok
