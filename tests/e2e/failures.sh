#!/usr/bin/env bash
# What goes wrong is said in one line, last, with the right exit code; earlier checkpoints stay.
. "$(dirname "$0")/lib.sh"

last_line() { # LOG TEXT: the last line is the error and holds the text
    tail -n 1 "$1" | grep -q '^error: ' || fail "the last line of $1 is no error"
    tail -n 1 "$1" | grep -q -- "$2" || fail "\"$2\" is not in the last line of $1"
    [ "$(grep -c '^error: ' "$1")" -eq 1 ] || fail "$1 has more than one error"
}
wrong() { # NAME RANKS RC TEXT OPTIONS...
    local name=$1 ranks=$2 code=$3 text=$4
    shift 4
    train "$ranks" "$name" "$@"
    expect_rc "$code" "$name"
    last_line "$name.log" "$text"
}
train 1 good --training.steps 10
expect_rc 0 "good"
cp -r good/checkpoint before

wrong ep 2 2 "expert_parallel_degree 8 does not divide the shard degree 2" --parallelism.expert_parallel_degree 8
wrong experts 3 2 "expert_parallel_degree 3 does not divide the 8 experts" --parallelism.expert_parallel_degree 3
wrong batch 2 2 "global_batch_size 6 is not a multiple" --training.global_batch_size 6
wrong degrees 4 2 "is not the number of ranks, 4" --parallelism.data_parallel_shard_degree 3
wrong nodata 1 1 "nothing.bin" --training.dataset_path nothing.bin
wrong bf16 1 2 "needs a GPU" --training.dtype bfloat16
wrong decay 1 2 "decay_type" --lr_scheduler.decay_type line
wrong key 1 2 "training.stepz" --training.stepz 3
wrong validation 1 2 "validation.dataset_path" --validation.enable
wrong load 1 1 "step-7" --checkpoint.load_step 7
# Petabytes, refused before anything is reserved.
wrong memory 2 1 "this run needs [0-9.]* GiB of memory on the CPU for 2 ranks, and .* GiB\\. .*job.check_memory" \
    --model.dim 16384 --model.n_layers 400 --moe.num_experts 128 --moe.moe_dim 8192
! grep -q 'cannot reserve' memory.log || fail "something was reserved first"
wrong initial 1 1 "nowhere" --checkpoint.initial_load_path nowhere
mkdir -p other && cp -r before other/checkpoint
wrong other 1 2 "model.dim = 32, now it is 64" --model.dim 64
wrong other 1 2 "no part of a checkpoint" --checkpoint.exclude_from_loading optimiser

# NaN: every rank stops before the update, and the step and tensor are named.
wrong nan 2 1 "step [0-9]*: .*\(NaN\|infinite\|not finite\)" --optimizer.lr 1e6 --optimizer.weight_decay 1 \
    --training.max_norm 1e15 --training.steps 200
expect_text nan.log "stopped before the update"

# One rank alone meets a bad token: all stop at once, and the root cause is what is read last.
cp tokens.bin bad.bin
printf '\377\377\0\0' | dd of=bad.bin bs=4 seek=100 conv=notrunc 2> /dev/null
began=$SECONDS
wrong bad 4 1 "rank [0-3]: bad.bin: token 65535 at index 100" --training.dataset_path bad.bin
[ $((SECONDS - began)) -lt 20 ] || fail "the other ranks waited for the one that failed"

# A folder that cannot be written, and one that a file stands in for.
echo x > file
wrong file 1 1 "file" --job.dump_folder file/inside
mkdir -p locked/checkpoint && echo x > locked/metrics.jsonl.blocker && mkdir locked/metrics.jsonl
wrong locked 1 1 "metrics.jsonl"

# Signals without checkpoints: nothing is saved, and it is said.
"$EXPAR" train --job.config_file tiny.toml --job.dump_folder off --checkpoint.no_enable \
    --training.steps 100000 --job.threads_per_rank 1 > off.log 2>&1 &
pid=$!
for _ in $(seq 200); do
    [ -s off/metrics.jsonl ] && break
    sleep 0.05
done
kill -INT $pid
wait $pid
rc=$?
expect_rc 0 "SIGINT"
expect_text off.log "nothing is saved: checkpoint.enable is off"

# A damaged checkpoint is refused whole; the one before can be chosen.
cp -r good damaged
train 1 damaged --training.steps 20
rc_before=$rc
[ "$rc_before" -eq 0 ] || fail "damaged: preparing"
printf 'x' | dd of=damaged/checkpoint/step-20/rank-00000.safetensors bs=1 seek=20000 conv=notrunc 2> /dev/null
wrong damaged 1 1 "step-20" --training.steps 25
train 1 damaged --training.steps 25 --checkpoint.load_step 10
expect_rc 0 "an earlier step"
expect_text damaged.log "resume: damaged/checkpoint/step-10"
diff -r before good/checkpoint || fail "the earlier checkpoint changed"

# The command line itself.
"$EXPAR" --version | grep -q '^expar [0-9]' || fail "--version"
"$EXPAR" --help | grep -q 'train' || fail "--help"
"$EXPAR" train --help | grep -q '^examples' || fail "train --help"
cmp -s <("$EXPAR" help report) <("$EXPAR" report --help) || fail "expar help report is not expar report --help"
"$EXPAR" trian > cli.log 2>&1
rc=$?
expect_rc 2 "unknown command"
expect_text cli.log 'did you mean "train"'
"$EXPAR" > cli.log 2>&1
rc=$?
expect_rc 2 "no command"
echo ok
