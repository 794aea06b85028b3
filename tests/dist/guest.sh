#!/usr/bin/env bash
# Programs with an MPI of their own, of which the library takes a communicator: collectives against a computation and bit for
# bit against rank threads, and the list of expert parallelism. MPI is initialised and finalised by the programs.
. "$(dirname "$0")/lib.sh"
[ -n "${TEST_COMM_GUEST:-}" ] || { echo "SKIP: built without MPI"; exit 77; }
for n in 1 2 3 4 8; do
    launch $n brute-$n "$TEST_COMM_GUEST"
    expect_ok $n brute-$n
    launch $n bits-$n "$EQUAL_BITS_GUEST"
    expect_ok $n bits-$n
done
for transport in p2p a2a; do
    for n in 1 2 4; do
        launch $n ep-$transport-$n "$TEST_EP_GUEST" --mpi --transport $transport
        expect_ok $n ep-$transport-$n
        grep "cases on" ep-$transport-$n/all.log
    done
done
# A rank is killed while the others wait for it, in a collective or in a window: they hear of it at once, not at the time limit
# of 100 s. Rank r here is rank 3 - r of MPI.
i=0
for lost in "dispatch 0 p2p" "combine 1 p2p" "plan 2 p2p" "all-reduce 3 p2p" "dispatch 1 a2a" "all-gather 2 a2a" "combine 3 a2a" "plan 0 a2a"; do
    set -- $lost
    name=kill-$((i++))
    launch 4 $name "$FAULT_GUEST" "$1" kill "$2" "$3" &
    mpirun=$!
    for ((r = 0; r < 100; r++)); do
        [ -d $name ] && break
        sleep 0.05
    done
    survivors=()
    for r in 0 1 2 3; do
        [ $r = $((3 - $2)) ] || survivors+=($r)
    done
    wait_ranks $name 20 "${survivors[@]}"
    wait $mpirun
    for r in "${survivors[@]}"; do
        [ "$(cat $name/rc.$r)" = 1 ] || fail "$name: rank $r exited with $(cat $name/rc.$r)"
        grep -q "^error: rank $2 is gone, last in " $name/err.$r || fail "$name: rank $r does not name rank $2"
    done
done
echo "$i kills: $(grep -h '^error: ' $name/all.log | tail -n 1 | cut -c 1-100)"
echo "ok: the caller's MPI on 1, 2, 3, 4 and 8 processes"
