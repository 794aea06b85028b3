#!/usr/bin/env bash
# Two nodes, simulated by two network namespaces with a cable between them: MPI goes over TCP, and what MPI says of shared
# memory ends at the node. Collectives, expert parallelism over a2a and hierarchical, and a rank lost on the other node.
. "$(dirname "$0")/lib.sh"
if [ "$(id -u)" -ne 0 ] || ! command -v ip > /dev/null || ! ip netns add xp-probe-$$ 2> /dev/null; then
    echo "SKIP: two nodes need root and 'ip netns' (iproute2); run this test on a machine that allows network namespaces"
    exit 77
fi
ip netns del xp-probe-$$
A=xp-a-$$ B=xp-b-$$
remove_nodes() {
    ip netns del $A
    ip netns del $B
    cleanup
}
trap remove_nodes EXIT
ip netns add $A && ip netns add $B && ip link add name veth0 netns $A type veth peer name veth0 netns $B &&
    ip -n $A addr add 10.77.0.1/24 dev veth0 && ip -n $B addr add 10.77.0.2/24 dev veth0 &&
    ip -n $A link set lo up && ip -n $B link set lo up && ip -n $A link set veth0 up && ip -n $B link set veth0 up ||
    fail "cannot make two nodes"

# What ssh would do: mpirun calls it as AGENT HOST COMMAND...
cat > agent.sh <<SH
#!/bin/sh
[ "\$1" = 10.77.0.2 ] || exit 1
shift
exec ip netns exec $B unshare --uts sh -c 'hostname expar-node-b; exec sh -c "\$*"' sh "\$@"
SH
# And mpirun itself, on the first node.
cat > mpirun.sh <<SH
#!/bin/sh
exec ip netns exec $A unshare --uts sh -c 'hostname expar-node-a; exec "\$@"' sh "$MPIRUN" \\
    --mca plm rsh --mca plm_rsh_agent "$WORK/agent.sh" --mca plm_rsh_no_tree_spawn 1 \\
    --mca oob_tcp_if_include 10.77.0.0/24 --mca btl_tcp_if_include 10.77.0.0/24 --mca btl tcp,vader,self --mca pml ob1 \\
    -x TMPDIR -x FAULT_TIMEOUT "\$@"
SH
chmod +x agent.sh mpirun.sh
MPIRUN=$WORK/mpirun.sh
on_nodes() { # SLOTS-ON-A SLOTS-ON-B FOLDER COMMAND...
    XP_MPIRUN_ARGS="-H 10.77.0.1:$1,10.77.0.2:$2 --map-by ${MAP_BY:-slot}" launch $(($1 + $2)) "${@:3}"
}
export OMPI_MCA_hwloc_base_binding_policy=none FAULT_TIMEOUT=4
# Both row types where there are few ranks; each message crosses several processes that share the cores.
f32="--dtype f32"
[ "$LONG" = 1 ] && f32=
for form in "1 1" "2 1" "2 2" "4 4"; do
    set -- $form
    n=$(($1 + $2))
    if [ $n -le 3 ] || [ "$LONG" = 1 ]; then
        on_nodes $1 $2 bits-$n "$EQUAL_BITS"
        expect_ok $n bits-$n
    fi
    for transport in hierarchical a2a; do
        [ $transport = hierarchical ] && [ "$1" != "$2" ] && continue # it needs equally many ranks on each node
        [ $n -gt 3 ] && types=$f32 || types=
        # shellcheck disable=SC2086
        on_nodes $1 $2 $transport-$n "$TEST_EP_MPI" --mpi --transport $transport $types
        expect_ok $n $transport-$n
        echo "$((SECONDS)) s: $transport, $1 + $2 ranks on 2 nodes: $(grep 'cases on' $transport-$n/all.log)"
    done
done
# shellcheck disable=SC2086
MAP_BY=node on_nodes 2 2 taking-turns "$TEST_EP_MPI" --mpi --transport hierarchical $f32
expect_ok 4 taking-turns
on_nodes 2 2 where "$START_STOP"
expect_ok 4 where
grep -q "^4 ranks on 2 nodes" where/all.log || fail "the ranks do not see two nodes: $(cat where/all.log)"

# A rank of the second node is lost: the first node hears of it from the other one.
for lost in "kill a2a" "stop a2a" "kill hierarchical" "stop hierarchical"; do
    how=${lost% *} transport=${lost#* }
    name=lost-$how-$transport
    # Once a rank is lost, mpirun over several nodes may stay after all ranks have ended: nobody waits for it.
    LIMIT=30 LINGER=1 on_nodes 2 2 $name "$FAULT" dispatch $how 3 $transport &
    mpirun=$!
    sleep 1
    wait_ranks $name 15 0 1 2
    [ $how = stop ] && kill -KILL "$(cat $name/pid.3)"
    wait $mpirun
    for r in 0 1 2; do
        [ "$(cat $name/rc.$r)" = 1 ] || fail "$name: rank $r exited with $(cat $name/rc.$r)"
        grep -q "^error: .*rank 3" $name/err.$r || fail "$name: rank $r does not name rank 3"
    done
    [ "$how" = stop ] || grep '^error: ' $name/all.log | tail -n 1 | grep -q "rank 3 is gone" ||
        fail "$name: the last line is not the root cause"
    echo "$name: $(grep '^error: ' $name/all.log | tail -n 1)"
done
echo "ok: two nodes"
