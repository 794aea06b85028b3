#!/usr/bin/env bash
# One run in one dump folder: a second start ends at once and names the first; what dead processes left is in nobody's way;
# a rank that has lost its launcher counts as alive. XP_TEST_LONG=1: 200 pairs.
. "$(dirname "$0")/lib.sh"
pairs=10
[ "${XP_TEST_LONG:-0}" != 0 ] && pairs=200
host=$(hostname)

# check FOLDER: whole checkpoints only, and a line for every step up to the newest one.
check() {
    local last
    last=$(ls "$1/checkpoint" | sed -n 's/^step-//p' | sort -n | tail -n 1)
    for step in $(ls "$1/checkpoint" | sed -n 's/^step-//p'); do
        "$EXPAR" eval --checkpoint "$1/checkpoint/step-$step" --tokens tokens.bin --seq 32 --rows 2 > eval.log 2>&1 ||
            fail "$1: step-$step is damaged"
    done
    [ "$(grep -o '^{"step": [0-9]*' "$1/metrics.jsonl" | awk '{print $2}' | head -n "$last" | tr '\n' ' ')" = \
        "$(seq "$last" | tr '\n' ' ')" ] || fail "$1: metrics.jsonl has not every step up to $last"
}
start() { # DUMP LOG OPTIONS: in the background, $pid
    local dump=$1 log=$2
    shift 2
    NGPU=1 "$EXPAR" train --job.config_file tiny.toml --job.dump_folder "$dump" --job.threads_per_rank 1 \
        --checkpoint.interval 5 --checkpoint.keep_latest_k 3 "$@" > "$log" 2>&1 &
    pid=$!
}
wait_for() { # FILE: until it holds something
    for _ in $(seq 600); do
        [ -s "$1" ] && return
        sleep 0.05
    done
    fail "$1 stays empty"
}

# A run is under way; the second start says whose folder it is.
start busy first.log --training.steps 1000000 --checkpoint.interval 100
first=$pid
wait_for busy/metrics.jsonl
config=$(cat busy/config.toml)
train 2 busy --optimizer.lr 1e-5
expect_rc 1 "second start"
expect_text busy.log "busy is in use by another run: its rank 0 is process $first on $host, since 20.* UTC"
expect_no busy.log "^step:"
[ "$config" = "$(cat busy/config.toml)" ] || fail "the second start changed config.toml"
kill -KILL $first
wait $first 2> kill.log
train 1 busy --training.steps 3
expect_rc 0 "after a kill"
sed -i "s/host $host /host elsewhere /" busy/.lock # a lock file of another node
train 1 busy --training.steps 4
expect_rc 0 "after a kill on another node"

# Pairs that start together: one trains, or one after the other.
refused=0
for i in $(seq $pairs); do
    rm -rf pair
    start pair a.log --training.steps 12
    a=$pid
    start pair b.log --training.steps 12 --optimizer.lr 1e-5
    b=$pid
    wait $a
    rc_a=$?
    wait $b
    rc_b=$?
    [ $rc_a = 0 ] || [ $rc_b = 0 ] || fail "pair $i: both ended: $(tail -n 1 a.log b.log)"
    for one in "$rc_a a.log $b" "$rc_b b.log $a"; do
        set -- $one
        [ "$1" = 0 ] && continue
        refused=$((refused + 1))
        grep -q "^error: pair is in use by another run: its rank 0 is process $3 on $host, since " "$2" || fail "pair $i: $(tail -n 1 "$2")"
    done
    check pair
done
echo "$pairs pairs: $refused second starts refused, 0 damaged"
[ $refused -gt 0 ] || fail "no two runs met"

# Ranks that outlive their launcher.
if [ -z "${MPIRUN:-}" ] || ! command -v "$MPIRUN" > /dev/null; then
    echo "ok (without MPI)"
    exit 0
fi
[ "$(id -u)" -eq 0 ] && export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# Each rank has a session of its own: the kernel would wake a stopped one when its launcher dies.
launch() { # LOG OPTIONS
    local log=$1
    shift
    "$MPIRUN" --oversubscribe --bind-to none --enable-recovery -n 2 bash -c 'setsid "$@" & echo $! > pid.$OMPI_COMM_WORLD_RANK; wait $!' - \
        "$EXPAR" train --job.config_file tiny.toml --job.dump_folder orphan --job.threads_per_rank 1 "$@" > "$log" 2>&1
}
orphans=2
[ "${XP_TEST_LONG:-0}" != 0 ] && orphans=20
for i in $(seq $orphans); do
    rm -rf orphan
    launch orphan1.log --training.steps 1000000 --checkpoint.interval 50 &
    mpirun=$!
    wait_for orphan/metrics.jsonl
    kill -STOP "$(cat pid.1)"
    kill -KILL "$(pgrep -P $mpirun -x "$(basename "$MPIRUN")" || echo $mpirun)" "$(cat pid.0)"
    wait $mpirun 2> kill.log
    orphan=$(cat pid.1)
    train 1 orphan --training.steps 3
    expect_rc 1 "beside an orphan"
    expect_text orphan.log "orphan is in use by another run: its rank 1 is process $orphan on $host, since "
    launch orphan2.log --training.steps 3
    [ "$(grep -c "its rank 1 is process $orphan on $host" orphan2.log)" -ge 1 ] || fail "ranks beside an orphan: $(tail -n 2 orphan2.log)"
    [ "$(grep -c '^step:' orphan2.log)" = 0 ] || fail "ranks trained beside an orphan"
    kill -KILL "$orphan"
    while kill -0 "$orphan" 2> kill.log; do sleep 0.05; done
    mkdir -p orphan/.expar-ranks-0123456789abcdef
    echo "$orphan $host" > orphan/.expar-ranks-0123456789abcdef/1
    launch orphan3.log --training.steps 100 --checkpoint.interval 50
    grep -q '^step: ' orphan3.log || fail "after the orphan's end: $(tail -n 2 orphan3.log)"
    [ -z "$(ls -d orphan/.expar-ranks-* 2> ls.log)" ] || fail "marks stay: $(ls -d orphan/.expar-ranks-*/*)"
done
echo "$orphans orphans: each named, 0 damaged"
echo ok
