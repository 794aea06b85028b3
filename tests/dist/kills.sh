#!/usr/bin/env bash
# Ranks of a training run that saves all the time are killed at random moments: no survivor hangs, each says who is gone, and
# the newest complete checkpoint loads. XP_TEST_LONG=1: 100 kills instead of 8.
. "$(dirname "$0")/lib.sh"
"$MAKE_TOKENS" tokens.bin 40000 512 || fail "no tokens"
cat > tiny.toml <<'TOML'
[model]
flavor = "tiny_moe-deepep"
vocab_size = 512
n_layers = 2
[training]
dataset = "tokens"
seq_len = 32
local_batch_size = 1
steps = 100000
[parallelism]
expert_parallel_degree = 4
[checkpoint]
enable = true
interval = 2
keep_latest_k = 2
[comm]
init_timeout_seconds = 30
train_timeout_seconds = 5
TOML
train=("$EXPAR" train --job.config_file "$WORK/tiny.toml" --training.dataset_path "$WORK/tokens.bin"
    --job.dump_folder "$WORK/dump" --job.threads_per_rank 1)
kills=8
[ "$LONG" = 1 ] && kills=100
RANDOM=${XP_TEST_SEED:-11}
newest() {
    ls -d dump/checkpoint/step-* 2> /dev/null | sed 's/.*step-//' | sort -n | tail -n 1
}
for ((i = 1; i <= kills; i++)); do
    victim=$((RANDOM % 4))
    delay=$((RANDOM % 1200))
    rm -rf "run-$((i - 1))"
    LIMIT=90 launch 4 run-$i "${train[@]}" &
    mpirun=$!
    # Every fourth kill may hit the start; the others come once the run trains, which starts from the checkpoint before.
    waited=0
    while [ $((i % 4)) != 0 ] && ! grep -q '^step:' run-$i/all.log 2> /dev/null; do
        [ $((waited++)) -lt 600 ] || fail "run $i does not train"
        sleep 0.05
    done
    until [ -s "run-$i/pid.$victim" ]; do
        [ $((waited++)) -lt 1200 ] || fail "run $i does not start"
        sleep 0.05
    done
    sleep "$(awk -v d=$delay 'BEGIN { print d / 1000 }')"
    kill -KILL "$(cat run-$i/pid.$victim)" 2> /dev/null || fail "run $i: rank $victim is not there any more"
    began=$(now_ms)
    survivors=()
    for r in 0 1 2 3; do
        [ $r = $victim ] || survivors+=($r)
    done
    wait_ranks run-$i $((5 + 5)) "${survivors[@]}"
    took=$(($(now_ms) - began))
    wait $mpirun
    for r in "${survivors[@]}"; do
        rc=$(cat run-$i/rc.$r)
        [ "$rc" = 1 ] || fail "run $i: rank $r exited with $rc"
        # Killed before it left its mark, a rank is one that did not arrive.
        grep -q "^error: .*rank $victim" run-$i/err.$r || fail "run $i: rank $r does not name rank $victim"
    done
    echo "kill $i of $kills: rank $victim, survivors ended after $took ms: $(grep -h '^error: ' run-$i/all.log | tail -n 1 | cut -c 1-110)"
done
# What is there must load and go on.
last=$(newest)
[ -n "$last" ] || fail "no checkpoint is complete"
LIMIT=90 launch 4 after "${train[@]}" --training.steps $((last + 2))
expect_ok 4 after
grep -q "step:  *$((last + 1)) " after/all.log || fail "the run does not go on after step $last"
echo "ok: $kills kills, then on from step $last"
