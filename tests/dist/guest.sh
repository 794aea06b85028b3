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
echo "ok: the caller's MPI on 1, 2, 3, 4 and 8 processes"
