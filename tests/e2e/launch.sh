#!/usr/bin/env bash
# `expar train` starts its ranks as processes by itself: the same output and bits as rank threads, exit codes, signals, killed
# ranks and helpers, and nothing left behind. XP_TEST_LONG=1: more of each.
. "$(dirname "$0")/lib.sh"
if ! command -v mpirun > /dev/null; then
    echo "skipped: no mpirun on this machine"
    exit 77
fi
times=1
[ "${XP_TEST_LONG:-0}" = 1 ] && times=5
export TMPDIR=$WORK/t
mkdir -p "$TMPDIR"
shm_before=$(ls /dev/shm)

# processes RANKS DUMP_FOLDER [OPTIONS]: as train()
processes() {
    local ranks=$1 dump=$2
    shift 2
    train "$ranks" "$dump" --job.ranks processes "$@"
}
# This test's own processes: all have its folder in their command line or environment.
ours() {
    local pid
    for pid in /proc/[0-9]*; do
        pid=${pid#/proc/}
        [ "$pid" = $$ ] || [ "$pid" = "$BASHPID" ] && continue
        case $(cat "/proc/$pid/comm" 2> /dev/null) in
        expar | mpirun | orted | prted | rm) tr '\0' '\n' 2> /dev/null < "/proc/$pid/environ" | grep -q "^EXPAR_TEST_MARK=$WORK$" && echo "$pid" ;;
        esac
    done
}
export EXPAR_TEST_MARK=$WORK
# Nothing is left: at once when the launcher could do it itself, within SECONDS when it was killed.
nothing_left() { # WHAT [SECONDS]
    local i
    for ((i = 0; i <= ${2:-0} * 10; i++)); do
        [ -z "$(ours)" ] && [ -z "$(ls "$TMPDIR")" ] && [ -z "$(ls -d /tmp/expar-launch-* /dev/shm/expar-launch-* 2> /dev/null)" ] && return
        sleep 0.1
    done
    ps -o pid,ppid,args -p "$(ours | tr '\n' ',' | sed 's/,$//')"
    ls -d "$TMPDIR"/* /dev/shm/* /tmp/expar-launch-* 2> /dev/null
    fail "$1: something is left"
}
same() { # A B STEP
    local file
    for file in "$1/checkpoint/step-$3"/*.safetensors; do
        cmp "$file" "$2/checkpoint/step-$3/$(basename "$file")" || fail "$1 and $2 differ"
    done
}
# Without what a measurement changes, and the name of the folder.
lines_of() {
    sed -E 's/[0-9.,]+ ?GiB|[0-9.]+%|tps: *[0-9,]+|[0-9,]+ tok\/s|tflops: *[0-9.]+|total: *[0-9,]+|time: *[0-9.]+s|ETA: *[0-9dhms]+|in [0-9hms]+//g; s/\b(thr|pro)[a-z0-9]*\///g' "$1"
}
one_error() { # LOG TEXT: one line of error, and it holds the text
    [ "$(grep -c '^error: ' "$1")" -eq 1 ] || fail "$1 has not one error"
    grep '^error: ' "$1" | grep -q -- "$2" || fail "\"$2\" is not in the error of $1"
    expect_no "$1" "mpirun\b.*exited\|PMIX\|MPI_Finalize\|-----"
}

# ---- the same run
for n in 2 4 8; do
    train $n thr$n --parallelism.expert_parallel_degree $n --training.global_batch_size 16
    expect_rc 0 "threads"
    processes $n pro$n --parallelism.expert_parallel_degree $n --training.global_batch_size 16
    expect_rc 0 "processes"
    same thr$n pro$n 20
    diff <(lines_of thr$n.log) <(lines_of pro$n.log) || fail "the output of $n processes differs from that of threads"
    nothing_left "$n ranks"
done
processes 1 single --training.steps 2
expect_rc 0 "one rank"
for speaker in 1 5; do
    LOG_RANK=$speaker processes 2 spoken$speaker --training.steps 2
    expect_rc 0 "LOG_RANK=$speaker"
done
[ "$(grep -c '^step: ' spoken1.log)" -eq 1 ] || fail "LOG_RANK=1: not one rank speaks"
expect_no spoken5.log "^step: " # there is no rank 5

# ---- wrong: one error, the right code
processes 2 wrong --training.stepz 3
expect_rc 2 "a wrong key"
one_error wrong.log "training.stepz"
processes 2 wrong --parallelism.expert_parallel_degree 8
expect_rc 2 "a wrong degree"
one_error wrong.log "expert_parallel_degree 8 does not divide"
processes 2 wrong --moe.num_experts 6 --parallelism.expert_parallel_degree 2 --training.dtype bfloat16
expect_rc 2 "an error that all ranks find"
one_error wrong.log "bfloat16"
processes 2 wrong --training.dataset_path nothing.bin
expect_rc 1 "no data"
one_error wrong.log "nothing.bin"
cp tokens.bin bad.bin
printf '\377\377\0\0' | dd of=bad.bin bs=4 seek=100 conv=notrunc 2> /dev/null
processes 4 bad --training.dataset_path bad.bin
expect_rc 1 "one rank's error"
one_error bad.log "rank [0-3] .*bad.bin: token 65535 at index 100"
train 1 wrong --job.ranks thread
expect_rc 2 "job.ranks"
one_error wrong.log "job.ranks"
NGPU='' train '' wrong --parallelism.expert_parallel_degree 2 --training.backend cpu
expect_rc 2 "EP without ranks"
one_error wrong.log "set NGPU=2"
nothing_left "wrong runs"

# ---- no mpirun, another mpirun, one that fails
mkdir -p none other failing slow
ln -s "$(command -v bash)" "$(command -v sed)" "$(command -v sh)" none/ 2> /dev/null
printf '#!/bin/sh\necho HYDRA build details:\n' > other/mpirun
printf '#!/bin/sh\n[ "$1" = --version ] && { echo "mpirun (Open MPI) 4.1.4"; exit 0; }\necho "no slots: the reason" >&2\nexit 3\n' > failing/mpirun
printf '#!/bin/sh\n[ "$1" = --version ] || sleep 30\nPATH=%q exec mpirun "$@"\n' "$PATH" > slow/mpirun
chmod +x other/mpirun failing/mpirun slow/mpirun
PATH=$WORK/none processes 2 absent
expect_rc 1 "no mpirun"
one_error absent.log "apt-get install openmpi-bin"
PATH=$WORK/other:$PATH processes 2 other
expect_rc 1 "another mpirun"
one_error other.log "not the mpirun of Open MPI"
PATH=$WORK/failing:$PATH processes 2 failing
expect_rc 1 "a failing mpirun"
one_error failing.log "mpirun ended with exit code 3 and started 0 of 2 ranks"
expect_text failing.log "no slots: the reason"
nothing_left "no mpirun"

# ---- signals
long=(--training.global_batch_size 8 --training.steps 100000 --checkpoint.interval 20 --lr_scheduler.warmup_steps 90000
    --comm.train_timeout_seconds 4)
# start RANKS DUMP_FOLDER [OPTIONS]: in the background; $launcher is the process that the user sees. Job control, because without it a
# script's background commands begin with SIGINT ignored: one that comes before the program has its handlers would be lost.
start() {
    local ranks=$1 dump=$2
    shift 2
    rm -rf "$dump"
    set -m
    NGPU=$ranks "$EXPAR" train --job.config_file tiny.toml --job.dump_folder "$dump" --job.threads_per_rank 1 \
        --job.ranks processes "${long[@]}" "$@" > "$dump.log" 2>&1 &
    launcher=$!
    set +m
}
wait_for_steps() { # DUMP_FOLDER
    local i
    for ((i = 0; i < 400; i++)); do
        [ -d "$1/checkpoint/step-20" ] && return
        sleep 0.05
    done
    fail "$1 does not get to step 20"
}
ended() { # RC|any WHAT SECONDS: the launcher ends in time; its exit code is left in rc
    local began=$SECONDS
    wait $launcher
    rc=$?
    [ "$1" = any ] || expect_rc "$1" "$2"
    [ $((SECONDS - began)) -le "$3" ] || fail "$2: took $((SECONDS - began)) s"
}
mpirun_of() {
    pgrep -P $launcher -x 'mpirun|prterun|orterun' | head -n 1
}
# The ranks themselves, in any order: shims are mpirun's children, ranks are theirs.
ranks_of() {
    local shim
    [ -n "$(mpirun_of)" ] || return
    for shim in $(pgrep -P "$(mpirun_of)" -x expar); do
        pgrep -P "$shim" -x expar
    done
}
for ((i = 0; i < times; i++)); do
    for signal in INT TERM; do
        start 2 once-$signal
        wait_for_steps once-$signal
        kill -$signal $launcher
        ended 0 "SIG$signal" 10
        expect_text once-$signal.log "^stopped: step"
        expect_no once-$signal.log "^error:"
        [ "$(grep -c "^SIG$signal: this step" once-$signal.log)" -eq 1 ] || fail "SIG$signal is not heard once"
        nothing_left "SIG$signal"

        # Twice, with ranks that cannot react.
        start 4 twice-$signal
        wait_for_steps twice-$signal
        # shellcheck disable=SC2046
        kill -STOP $(ranks_of)
        kill -$signal $launcher
        sleep 1.6 # a second signal counts from 1 s after the first, as the launcher saw it
        kill -0 $launcher || fail "one SIG$signal ended a run that could not save"
        kill -$signal $launcher
        ended 1 "SIG$signal twice" 3
        nothing_left "SIG$signal twice"

        # Before there is anything to save: mpirun does not come to its ranks.
        PATH=$WORK/slow:$PATH start 2 early-$signal
        sleep 0.$((RANDOM % 5))
        kill -$signal $launcher
        ended $((128 + $(kill -l $signal))) "SIG$signal before there are ranks" 10
        expect_no early-$signal.log "^step:"
        nothing_left "SIG$signal before there are ranks"
        # At any moment of a start: the signal's exit code and nothing done, or a run that has stopped in order.
        for moment in 0.0 0.2 0.4; do
            start 2 start-$signal
            sleep $moment$((RANDOM % 10))
            kill -$signal $launcher
            ended any "SIG$signal at the start" 10
            if [ "$rc" -eq 0 ]; then
                expect_text start-$signal.log "^stopped: step"
            else
                expect_rc $((128 + $(kill -l $signal))) "SIG$signal at the start"
                expect_no start-$signal.log "^step:"
            fi
            expect_no start-$signal.log "^error:"
            nothing_left "SIG$signal at the start"
        done
    done
    # To the process group, as a terminal sends it, and a second time by `timeout`.
    rm -rf group
    NGPU=2 timeout -s INT 3 "$EXPAR" train --job.config_file tiny.toml --job.dump_folder group --job.threads_per_rank 1 \
        --job.ranks processes "${long[@]}" > group.log 2>&1
    expect_text group.log "^stopped: step"
    nothing_left "timeout"

    # ---- killed ranks and helpers
    for when in early late; do
        start 4 killed-$when
        if [ $when = early ]; then
            until [ -n "$(ranks_of)" ]; do sleep 0.01; done
        else
            wait_for_steps killed-$when
        fi
        kill -KILL "$(ranks_of | shuf -n 1)"
        ended 1 "a killed rank ($when)" 10
        one_error killed-$when.log "rank [0-3] was killed by signal 9 (Killed)"
        nothing_left "a killed rank ($when)"
    done
    start 4 stopped
    wait_for_steps stopped
    kill -STOP "$(ranks_of | shuf -n 1)"
    ended 1 "a stopped rank" 10
    one_error stopped.log "rank [0-3].*stopped\|for rank [0-3]"
    nothing_left "a stopped rank"

    start 2 shim
    wait_for_steps shim
    kill -KILL "$(pgrep -P "$(mpirun_of)" -x expar | head -n 1)"
    ended 1 "a killed shim" 10
    one_error shim.log "rank [01] was killed"
    nothing_left "a killed shim"

    start 2 nompirun
    wait_for_steps nompirun
    kill -KILL "$(mpirun_of)"
    ended 1 "a killed mpirun" 5
    one_error nompirun.log "mpirun was killed by signal 9"
    nothing_left "a killed mpirun"

    # The launcher's own helper, which cleans up after a killed launcher, is killed or stopped: the run does not need it.
    for signal in KILL STOP; do
        start 2 sweeper-$signal
        wait_for_steps sweeper-$signal
        kill -$signal "$(pgrep -P $launcher -x expar)"
        kill -INT $launcher
        ended 0 "the launcher's helper (SIG$signal)" 10
        expect_text sweeper-$signal.log "^stopped: step"
        expect_no sweeper-$signal.log "^error:"
        nothing_left "the launcher's helper (SIG$signal)"
    done

    for when in early late; do
        start 2 nolauncher-$when
        if [ $when = early ]; then sleep 0.1; else wait_for_steps nolauncher-$when; fi
        kill -KILL $launcher
        wait $launcher 2> /dev/null
        nothing_left "a killed launcher ($when)" 8
    done
done

# ---- an output that nobody reads any more: one error in plain words; the shim of another node's rank lives on
NGPU=2 "$EXPAR" train --job.config_file tiny.toml --job.dump_folder unread --job.threads_per_rank 1 --job.ranks processes \
    "${long[@]}" 2> unread.log | head -n 1 > /dev/null
rc=${PIPESTATUS[0]}
expect_rc 1 "a closed pipe"
one_error unread.log "rank 0 has written into a pipe that nobody reads any more"
EXPAR_LAUNCH_SOCKET=none "$EXPAR" train --job.config_file tiny.toml --job.dump_folder far --job.threads_per_rank 1 2> far.log | head -n 1 > /dev/null
rc=${PIPESTATUS[0]}
expect_rc 0 "a shim whose output is closed"
[ -d far/checkpoint/step-20 ] || fail "a shim has ended its rank: nobody read its output"
nothing_left "closed pipes"

# ---- many starts
starts=$((20 * times))
for ((i = 1; i <= starts; i++)); do
    processes $((i % 3 + 2)) many$i --training.steps 2 --training.global_batch_size 24 --checkpoint.no_enable
    expect_rc 0 "start $i of $starts"
    expect_text many$i.log "^done: step 2 of 2"
    rm -rf many$i many$i.log
done
nothing_left "$starts starts"
[ "$(ls /dev/shm)" = "$shm_before" ] || echo "note: /dev/shm has changed, perhaps by another test"
echo "ok: $starts starts"
