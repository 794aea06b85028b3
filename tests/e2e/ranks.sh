#!/usr/bin/env bash
# The same global batch on 1, 2 and 4 ranks, with and without expert parallelism and replicas, gives
# the same losses; a run repeated gives the same bits; activation checkpointing changes nothing.
. "$(dirname "$0")/lib.sh"

near() { # A B LIMIT WHAT
    awk -v a="$1" -v b="$2" -v limit="$3" 'BEGIN {
        d = a > b ? a - b : b - a; exit !(a + 0 > 0 && d <= limit * a)
    }' || fail "$4: $1 and $2"
}
check() { # NAME RANKS OPTIONS...
    local name=$1 ranks=$2
    shift 2
    train "$ranks" "$name" --training.global_batch_size 8 "$@"
    expect_rc 0 "$name"
    near "$(metric base 1 loss)" "$(metric "$name" 1 loss)" 1e-6 "$name: loss of step 1"
    near "$(metric base 1 grad_norm)" "$(metric "$name" 1 grad_norm)" 1e-5 "$name: norm of step 1"
    near "$(metric base 8 loss)" "$(metric "$name" 8 loss)" 1e-5 "$name: loss of step 8"
}
train 1 base --training.global_batch_size 8
expect_rc 0 "base"
near "$(metric base 1 loss)" 6.24 0.05 "the first loss is about ln(512)"
awk -v a="$(metric base 1 loss)" -v b="$(metric base 20 loss)" 'BEGIN { exit !(b < a - 0.01) }' ||
    fail "the loss does not fall"

check two 2
check four 4
check ep2 2 --parallelism.expert_parallel_degree 2
check ep4 4 --parallelism.expert_parallel_degree 4
check ep2of4 4 --parallelism.expert_parallel_degree 2 --parallelism.expert_parallel_comm_backend deepep
check replicas 4 --parallelism.expert_parallel_degree 2 --parallelism.data_parallel_replicate_degree 2
[ "$(metric two 20 ep_bytes)" = 0 ] || fail "bytes were sent without expert parallelism"
[ "$(metric ep2 20 ep_bytes)" -gt 0 ] || fail "no bytes were sent with expert parallelism"

train 4 again --training.global_batch_size 8 --parallelism.expert_parallel_degree 2 \
    --parallelism.expert_parallel_comm_backend deepep
for file in ep2of4/checkpoint/step-20/*.safetensors; do
    cmp "$file" "again/checkpoint/step-20/$(basename "$file")" || fail "a repeated run differs"
done
for mode in selective full; do
    train 1 $mode --training.global_batch_size 8 --activation_checkpoint.mode $mode
    expect_rc 0 "$mode"
    cmp base/checkpoint/step-20/rank-00000.safetensors $mode/checkpoint/step-20/rank-00000.safetensors ||
        fail "activation checkpointing ($mode) changes the result"
done

# A checkpoint of 4 ranks goes on at other rank counts and EP degrees with the same next loss.
train 4 base4 --training.global_batch_size 8 --training.steps 21 --parallelism.expert_parallel_degree 4
for form in "1 1" "2 2" "4 1"; do
    set -- $form
    cp -r ep4 moved-$1-$2
    train "$1" moved-$1-$2 --training.global_batch_size 8 --training.steps 21 \
        --parallelism.expert_parallel_degree "$2" --lr_scheduler.total_steps 20
    expect_rc 0 "moved to $1 ranks, EP $2"
    near "$(metric moved-1-1 21 loss)" "$(metric moved-$1-$2 21 loss)" 1e-6 "moved to $1 ranks, EP $2"
done
echo ok
