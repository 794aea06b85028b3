#!/usr/bin/env bash
# Every allocation of a run fails once: one clear error or the same result, and the next start goes on.
. "$(dirname "$0")/lib.sh"
total=0
attack() { # NAME RANKS MODE STEPS FROM
    local name=$1 ranks=$2 mode=$3 steps=$4 from=$5 n at
    rm -rf dump good calls.log
    fresh() { rm -rf dump; [ -z "$from" ] || cp -r "$from" dump; }
    fresh
    CALLS_LOG=$WORK/calls.log run_with $ranks $mode $steps
    [ $rc -eq 0 ] || { cat out; fail "$name: without a fault"; }
    mv dump good
    n=$(wc -l < calls.log)
    survived=0 warned=0 ended=0
    for at in $(numbers "$n" "${SAMPLES:-16}"); do
        fresh
        CALLS_AT=$at run_with $ranks $mode $steps
        judge "$name, allocation $at of $n ($(sed -n "${at}p" calls.log)) fails" $ranks dump $steps
        total=$((total + 1))
    done
    echo "$name: $n allocations, $((survived + warned + ended)) failures: $ended ended with an error, $warned warned, $survived survived"
}
run_with() {
    export CALLS_LOG CALLS_AT CALLS_MEMORY=expar
    LD_PRELOAD=$CALLS run "$1" dump "$2" "$3"
    unset CALLS_LOG CALLS_AT CALLS_MEMORY
}
run 1 base disabled 4
[ $rc -eq 0 ] || { cat out; fail "the run to resume from"; }
attack "load and save" 1 disabled 4 ""
attack "resume, asynchronous" 1 async 8 base
echo "$total failing allocations"
