#!/usr/bin/env bash
# The whole test list of expert parallelism, each rank a process: ep.sh TRANSPORT
. "$(dirname "$0")/lib.sh"
transport=$1
for n in 1 2 3 4 8; do
    launch $n ep-$n "$TEST_EP_MPI" --mpi --transport "$transport"
    expect_ok $n ep-$n
    grep "cases on" ep-$n/all.log
done
echo "ok: $transport on 1, 2, 3, 4 and 8 processes"
