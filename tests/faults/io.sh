#!/usr/bin/env bash
# Every I/O call of a data load, a save and a resume fails once: the run survives with the same result, or ends with one
# clear error, and the next start goes on to the same result. Never silent.
. "$(dirname "$0")/lib.sh"
total=0
# attack NAME RANKS MODE STEPS FROM: all calls of a run that starts from the folder FROM ("" = none)
attack() {
    local name=$1 ranks=$2 mode=$3 steps=$4 from=$5 n at
    rm -rf dump good
    fresh() { rm -rf dump; [ -z "$from" ] || cp -r "$from" dump; }
    fresh
    CALLS_LOG=$WORK/calls.log CALLS_ROOT=$WORK/dump LD_PRELOAD=$CALLS run $ranks dump $mode $steps
    [ $rc -eq 0 ] || { cat out; fail "$name: without a fault"; }
    mv dump good
    for root in dump text.jsonl tok; do
        rm -f calls.log
        fresh
        CALLS_LOG=$WORK/calls.log CALLS_ROOT=$WORK/$root run_with $ranks $mode $steps
        n=$(wc -l < calls.log)
        survived=0 warned=0 ended=0
        for at in $(numbers "$n" "${SAMPLES:-5}"); do
            for error in 5 28; do
                fresh
                CALLS_AT=$at CALLS_ERRNO=$error CALLS_ROOT=$WORK/$root run_with $ranks $mode $steps
                judge "$name, call $at of $n under $root ($(sed -n "${at}p" calls.log)) fails with $error" $ranks dump $steps
                total=$((total + 1))
            done
        done
        echo "$name, $root: $n calls, $((survived + warned + ended)) failures: $ended ended with an error, $warned warned, $survived survived"
    done
}
run_with() {
    export CALLS_LOG CALLS_AT CALLS_ROOT CALLS_ERRNO
    LD_PRELOAD=$CALLS run "$1" dump "$2" "$3"
    unset CALLS_LOG CALLS_AT CALLS_ROOT CALLS_ERRNO
}
run 1 base disabled 4
[ $rc -eq 0 ] || { cat out; fail "the run to resume from"; }
run 2 base2 disabled 4
# A file system without locks (ENOLCK): said, and no reason to stop.
rm -rf dump calls.log
CALLS_ROOT=$WORK/dump CALLS_LOG=$WORK/calls.log run_with 1 disabled 4
at=$(sed -n 's/^\([0-9]*\) fcntl .*/\1/p' calls.log | head -n 1)
rm -rf dump
CALLS_ROOT=$WORK/dump CALLS_AT=$at CALLS_ERRNO=37 run_with 1 disabled 4
[ $rc -eq 0 ] && grep -q '^warning: .*/dump/.lock cannot be locked (No locks available): nothing keeps a second run out' out ||
    { cat out; fail "a file system without locks"; }
attack "load and save" 1 disabled 4 ""
attack "load and asynchronous save" 1 async 4 ""
attack "resume" 1 disabled 8 base
attack "resume on 2 ranks, asynchronous" 2 async 8 base2
echo "$total failing calls"
