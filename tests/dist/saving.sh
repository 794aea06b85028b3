#!/usr/bin/env bash
# A rank is killed or stopped, or its disk is full, while a checkpoint is written or published: every survivor ends in time,
# with one line that names the rank and the phase, the root cause comes last, and the newest complete checkpoint is as it was
# and loads.
. "$(dirname "$0")/lib.sh"
if ldd "$EXPAR" | grep -qE 'lib[at]san'; then
    echo "SKIP: a sanitizer's run time must be loaded before the library that loses a rank"
    exit 77
fi
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
steps = 400
[parallelism]
expert_parallel_degree = 4
[checkpoint]
enable = true
interval = 2
keep_latest_k = 0
[comm]
train_timeout_seconds = 2
TOML
train=("$EXPAR" train --job.config_file "$WORK/tiny.toml" --training.dataset_path "$WORK/tokens.bin"
    --job.threads_per_rank 1)
cat > lose.sh <<'SH2'
[ "$OMPI_COMM_WORLD_RANK" = "$LOSE_RANK" ] && export LD_PRELOAD=$LOSE_LIBRARY
exec "$@"
SH2
export LOSE_RANK LOSE_LIBRARY=$LOSE LOSE_CALL LOSE_PATH LOSE_HOW LOSE_WHEN
digest() { (cd "$1" && find . -type f -exec sha256sum {} + | sort); }
newest() {
    ls -d "$1"/checkpoint/step-* | sed 's/.*step-//' | sort -n | tail -n 1
}
launch 4 good "${train[@]}" --job.dump_folder "$WORK/good-d" --training.steps 2
expect_ok 4 good
digest good-d/checkpoint/step-2 > good.digest

# lose HOW RANK MODE CALL PATH WHEN STEP: at the checkpoint of step 4; STEP is the newest one afterwards.
lose() {
    LOSE_HOW=$1 LOSE_RANK=$2 LOSE_CALL=$4 LOSE_PATH=$5 LOSE_WHEN=$6
    local mode=$3 step=$7 name="$1-$2-$3-$4-$6-$7" r survivors=() began waited=0
    cp -r good-d "$name-d"
    for r in 0 1 2 3; do
        [ "$r" = "$LOSE_RANK" ] && [ "$LOSE_HOW" != full ] || survivors+=("$r")
    done
    LIMIT=60 launch 4 "$name" bash "$WORK/lose.sh" "${train[@]}" --job.dump_folder "$WORK/$name-d" \
        --checkpoint.async_mode "$mode" &
    local mpirun=$!
    until grep -q '^step:  *3 ' "$name/all.log" 2> /dev/null; do
        [ $((waited++)) -lt 600 ] || fail "$name: does not train"
        sleep 0.05
    done
    began=$(now_ms)
    wait_ranks "$name" $((2 + 5)) "${survivors[@]}"
    local took=$(($(now_ms) - began))
    [ "$LOSE_HOW" = stop ] && kill -KILL "$(cat "$name/pid.$LOSE_RANK")"
    wait $mpirun
    for r in "${survivors[@]}"; do
        [ "$(cat "$name/rc.$r")" = 1 ] || fail "$name: rank $r exited with $(cat "$name/rc.$r")"
        [ "$(grep -c '^error: ' "$name/err.$r")" = 1 ] || fail "$name: rank $r has not one line to say"
        # All ranks hear of a full disk together: whoever ends first, it is that rank's failure.
        grep -qE "^error: (.*: )?rank $LOSE_RANK (failed|gave up|is gone|died)|^error: .*(wait|waited) .*rank $LOSE_RANK" \
            "$name/err.$r" || fail "$name: rank $r does not name rank $LOSE_RANK"
        # A save beside the training is noticed in whatever the others do at that moment.
        [ "$mode" = async ] || grep -q '^error: .*checkpoint' "$name/err.$r" || fail "$name: rank $r does not name the phase"
    done
    local last
    last=$(grep '^error: ' "$name/all.log" | tail -n 1)
    case $LOSE_HOW in
    kill) [[ $last =~ "rank $LOSE_RANK "(is gone|died) ]] ;;
    stop) [[ $last =~ "rank $LOSE_RANK" && $last =~ (stopped|did not arrive) ]] ;;
    full) [[ $last =~ "rank $LOSE_RANK" && $last =~ "No space left on device" ]] ;;
    esac || fail "$name: the last line is not the root cause: $last"
    digest "$name-d/checkpoint/step-2" | cmp -s - good.digest || fail "$name: the checkpoint before changed"
    [ "$(newest "$name-d")" = "$step" ] || fail "$name: the newest checkpoint is of step $(newest "$name-d")"
    launch 4 "$name-after" "${train[@]}" --job.dump_folder "$WORK/$name-d" --training.steps $((step + 1))
    expect_ok 4 "$name-after"
    grep -q "^resume: .*step-$step" "$name-after/all.log" || fail "$name: does not go on from step $step"
    [ -z "$(find "$name-d/checkpoint" -name '.*')" ] || fail "$name: left behind: $(find "$name-d/checkpoint" -name '.*')"
    echo "$name: $took ms: $last"
}
shard() { echo .step-4.tmp/rank-0000$1.safetensors.tmp; }
for mode in disabled async; do
    lose kill 2 $mode fsync "$(shard 2)" before 2
    lose stop 1 $mode fsync "$(shard 1)" before 2
    lose full 3 $mode fsync "$(shard 3)" before 2
done
lose kill 3 disabled rename "$(shard 3)" after 2
lose kill 0 disabled fsync .step-4.tmp/manifest.json.tmp before 2
lose full 0 async fsync .step-4.tmp/manifest.json.tmp before 2
# The rename of the folder makes the checkpoint visible, and whole.
lose kill 0 disabled rename checkpoint/.step-4.tmp before 2
lose kill 0 disabled rename checkpoint/.step-4.tmp after 4
lose stop 0 disabled fsync checkpoint before 4
# Ranks as threads: the line of the whole process names that rank, whichever thread ends first.
for rank in 1 2 3; do
    cp -r good-d "threads-$rank-d"
    NGPU=4 LD_PRELOAD=$LOSE LOSE_HOW=full LOSE_CALL=fsync LOSE_PATH=$(shard $rank) LOSE_WHEN=before "${train[@]}" \
        --job.dump_folder "$WORK/threads-$rank-d" --checkpoint.async_mode disabled > "threads-$rank.log" 2>&1 &&
        fail "threads-$rank: a full disk was not noticed"
    last=$(grep '^error: ' "threads-$rank.log" | tail -n 1)
    [[ $last =~ ^"error: rank $rank"[:\ ] && $last =~ "No space left on device" ]] ||
        fail "threads-$rank: rank $rank is not the first that is named: $last"
    echo "threads-$rank: $last"
done
echo "ok: saving"
