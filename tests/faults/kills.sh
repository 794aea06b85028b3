#!/usr/bin/env bash
# A run that saves at every step is killed at random moments and started again: all that is saved loads, goes on, and has its
# lines in metrics.jsonl. Synchronous, asynchronous, 2 ranks as threads, 2 processes. XP_TEST_LONG=1: 125 kills each.
. "$(dirname "$0")/lib.sh"
kills=6
[ "$LONG" != 0 ] && kills=125
RANDOM=$SEED
total=0 saved=0
begin() { # RANKS DUMP MODE
    if [ "$1" = mpi ]; then
        "$MPIRUN" --oversubscribe --bind-to none -n 2 bash -c 'echo $$ > pid.$OMPI_COMM_WORLD_RANK; exec "$@"' - \
            "$EXPAR" train --job.config_file run.toml --job.dump_folder "$2" --job.threads_per_rank 1 \
            --checkpoint.async_mode "$3" --training.steps 1000000 --checkpoint.interval 1 --metrics.no_enable_tensorboard > out 2>&1 &
    else
        NGPU=$1 "$EXPAR" train --job.config_file run.toml --job.dump_folder "$2" --job.threads_per_rank 1 \
            --checkpoint.async_mode "$3" --training.steps 1000000 --checkpoint.interval 1 --metrics.no_enable_tensorboard > out 2>&1 &
    fi
    pid=$!
}
# What is there after a kill: whole, and each step's line once.
check() {
    local last
    last=$(kept "$1" | awk '{print $NF}')
    [ -n "$last" ] || return
    saved=$((saved + 1))
    [ "$(steps_of "$1/metrics.jsonl" | tr ' ' '\n' | awk -v l="$last" '$1 != "" && $1 <= l' | tr '\n' ' ')" = "$(seq "$last" | tr '\n' ' ')" ] ||
        fail "$2: steps up to $last are saved, metrics.jsonl lacks some of them: $(steps_of "$1/metrics.jsonl" | cut -c1-200)"
    for step in $(kept "$1"); do
        "$EXPAR" eval --checkpoint "$1/checkpoint/step-$step" --tokens tokens.bin --seq 16 --rows 1 > eval.log 2>&1 || fail "$2: step-$step does not load"
    done
}
storm() { # NAME RANKS MODE
    local name=$1 ranks=$2 mode=$3 i waited victim dump=kill-$1 last=0
    for ((i = 1; i <= kills; i++)); do
        rm -f out pid.*
        : > out
        begin "$ranks" "$dump" "$mode"
        # Every fourth kill may hit the start, the others a run that trains and saves.
        for ((waited = 0; i % 4 != 0; waited++)); do
            grep -q '^step:' out && break
            kill -0 $pid 2> wait.log || { cat out; fail "$name, start $i: does not train"; }
            [ $waited -lt 3000 ] || { cat out; fail "$name, start $i: hangs"; }
            sleep 0.02
        done
        sleep "$(awk -v d=$((RANDOM % 250)) 'BEGIN { print d / 1000 }')"
        if [ "$ranks" = mpi ]; then
            until [ -s pid.0 ] && [ -s pid.1 ]; do sleep 0.02; done
            victim=$((RANDOM % 3))
            case $victim in
            2) kill -KILL "$(cat pid.0)" "$(cat pid.1)" 2> kill.log ;;
            *) kill -KILL "$(cat pid.$victim)" 2> kill.log ;;
            esac
        else
            kill -KILL $pid
        fi
        wait $pid 2> wait.log
        total=$((total + 1))
        check "$dump" "$name, kill $i"
        last=$(kept "$dump" | awk '{print $NF}')
    done
    [ "${last:-0}" -ge $((kills / 2)) ] || fail "$name: only ${last:-0} steps in $kills starts: $(tail -n 2 out)"
    echo "$name: $kills kills, step $last reached, every saved step loads and has its line"
    rm -rf "$dump"
}
storm synchronous 1 disabled
storm asynchronous 1 async
storm two-ranks 2 async
if [ -n "${MPIRUN:-}" ] && command -v "$MPIRUN" > which.log; then
    [ "$(id -u)" -eq 0 ] && export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    storm processes mpi async
fi
echo "$total kills, $saved looks at what was saved: 0 damaged, 0 lines missing"
