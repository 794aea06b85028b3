#!/usr/bin/env bash
# Collectives over processes: against a computation of what each rank must get, and bit for bit against rank threads.
. "$(dirname "$0")/lib.sh"
for n in 1 2 3 4 8; do
    launch $n brute-$n "$TEST_COMM_MPI"
    expect_ok $n brute-$n
    launch $n bits-$n "$EQUAL_BITS"
    expect_ok $n bits-$n
    launch $n device-$n "$TEST_COMM_DEVICE" --mpi --device cpu
    expect_ok $n device-$n
done
if [ "$LONG" = 1 ]; then
    launch 2 huge "$EQUAL_BITS" --huge
    expect_ok 2 huge
fi
echo "ok: collectives on 1, 2, 3, 4 and 8 processes"
