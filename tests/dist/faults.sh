#!/usr/bin/env bash
# A rank is killed, stopped or out of memory in each phase: every survivor ends in time, with one line that names the rank and
# the phase, and the root cause comes last.
. "$(dirname "$0")/lib.sh"
export FAULT_TIMEOUT=2

# fault PHASE HOW VICTIM TRANSPORT [NAME]
fault() {
    local phase=$1 how=$2 victim=$3 transport=$4 name="$1-$2-$3-$4${5:+-$5}" r survivors=() began
    for r in 0 1 2 3; do
        [ "$r" = "$victim" ] && [ "$how" != memory ] || survivors+=("$r")
    done
    began=$(now_ms)
    launch 4 "$name" "$FAULT" "$phase" "$how" "$victim" "$transport" &
    local mpirun=$!
    for ((r = 0; r < 50; r++)); do
        [ -d "$name" ] && break
        sleep 0.05
    done
    # the timeout and 5 s; a start of processes on a busy machine is not part of it
    wait_ranks "$name" $((FAULT_TIMEOUT + 5 + 3)) "${survivors[@]}"
    local took=$(($(now_ms) - began))
    [ "$how" = stop ] && kill -KILL "$(cat "$name/pid.$victim")"
    wait $mpirun
    for r in "${survivors[@]}"; do
        [ "$(cat "$name/rc.$r")" = 1 ] || fail "$name: rank $r exited with $(cat "$name/rc.$r")"
        [ "$(grep -c '^error: ' "$name/err.$r")" = 1 ] || fail "$name: rank $r has not one line to say"
        grep -q "^error: .*rank $victim" "$name/err.$r" || fail "$name: rank $r does not name rank $victim"
        grep -q "^error: .* in $phase\|^error: $phase: " "$name/err.$r" || fail "$name: rank $r does not name the phase"
    done
    local last
    last=$(grep '^error: ' "$name/all.log" | tail -n 1)
    case $how in
    kill) [[ $last =~ "rank $victim "(is gone|died) ]] ;;
    stop) [[ $last =~ "rank $victim" && $last =~ (stopped|did not arrive) ]] ;;
    memory) [[ $last == "error: rank $victim gave up in "*": out of memory"* ]] ;;
    esac || fail "$name: the last line is not the root cause: $last"
    echo "$name: $took ms: $last"
}
for phase in init plan dispatch combine all-reduce reduce-scatter all-gather; do
    fault $phase kill 2 p2p
    fault $phase stop 1 p2p
    [ $phase = init ] || fault $phase memory 3 p2p
done
for phase in plan dispatch combine; do
    fault $phase kill 0 a2a
done
fault dispatch stop 3 a2a
# Rank 1 is late out of the call before.
export FAULT_LAGGARD=1
for transport in p2p a2a; do
    fault plan kill 0 $transport laggard
done
unset FAULT_LAGGARD
# Ranks as threads: one fails, or never comes; the others name it. All cases at once: they wait more than they work.
cases=()
for phase in plan dispatch combine all-reduce reduce-scatter all-gather; do
    for how in memory absent; do
        (
            FAULT_THREADS=3 timeout 20 "$FAULT" $phase $how 1 > threads-$phase-$how.log 2>&1
            echo $? > threads-$phase-$how.rc
        ) &
        cases+=($phase-$how)
    done
done
wait
for name in "${cases[@]}"; do
    [ "$(cat threads-$name.rc)" = 1 ] || fail "threads, $name: exit code"
    [ "$(grep -c '^error: rank [02]: .*rank 1' threads-$name.log)" = 2 ] || fail "threads, $name: $(cat threads-$name.log)"
done
echo "ok: faults"
