#!/usr/bin/env bash
# `expar train --hostfile` over two nodes, simulated by two network namespaces. Ranks of the other node have no socket to the
# launcher: what became of them comes through mpirun, and signals go the same way.
. "$(dirname "$0")/lib.sh"
if ! "$MPIRUN" --version 2> /dev/null | grep -q '(Open MPI) 4\.'; then
    echo "SKIP: the simulated nodes know Open MPI 4's settings"
    exit 77
fi
if [ "$(id -u)" -ne 0 ] || ! command -v ip > /dev/null || ! ip netns add xp-probe-$$ 2> /dev/null; then
    echo "SKIP: two nodes need root and 'ip netns' (iproute2)"
    exit 77
fi
ip netns del xp-probe-$$
A=xp-la-$$ B=xp-lb-$$
remove_nodes() {
    ip netns del $A
    ip netns del $B
    cleanup
}
trap remove_nodes EXIT
ip netns add $A && ip netns add $B && ip link add name veth0 netns $A type veth peer name veth0 netns $B &&
    ip -n $A addr add 10.78.0.1/24 dev veth0 && ip -n $B addr add 10.78.0.2/24 dev veth0 &&
    ip -n $A link set lo up && ip -n $B link set lo up && ip -n $A link set veth0 up && ip -n $B link set veth0 up ||
    fail "cannot make two nodes"
cat > agent.sh <<SH
#!/bin/sh
shift
exec ip netns exec $B unshare --uts sh -c 'hostname expar-node-b; exec sh -c "\$*"' sh "\$@"
SH
chmod +x agent.sh
export OMPI_MCA_plm=rsh OMPI_MCA_plm_rsh_agent=$WORK/agent.sh OMPI_MCA_plm_rsh_no_tree_spawn=1
export OMPI_MCA_oob_tcp_if_include=10.78.0.0/24 OMPI_MCA_btl_tcp_if_include=10.78.0.0/24 OMPI_MCA_btl=tcp,vader,self OMPI_MCA_pml=ob1
printf '10.78.0.1 slots=2\n10.78.0.2 slots=2\n' > hosts
"$MAKE_TOKENS" tokens.bin 40000 512 || fail "no tokens"
cat > tiny.toml <<'TOML'
[model]
flavor = "tiny_moe"
vocab_size = 512
n_layers = 1
[training]
dataset = "tokens"
dataset_path = "tokens.bin"
seq_len = 32
local_batch_size = 1
steps = 3
[lr_scheduler]
warmup_steps = 1
[metrics]
log_freq = 1
[comm]
train_timeout_seconds = 5
TOML
# start NAME [OPTIONS]: two ranks on each node, in the background; $launcher
start() {
    local name=$1
    shift
    mkdir -p "$name"
    NGPU=2 timeout -s KILL 90 ip netns exec $A unshare --uts sh -c 'hostname expar-node-a; exec "$@"' sh \
        "$EXPAR" train --hostfile hosts --job.config_file tiny.toml --job.dump_folder "$name/d" --job.threads_per_rank 1 "$@" \
        > "$name/all.log" 2>&1 < /dev/null &
    job=$!
}
finish() { # NAME RC
    wait $job
    local rc=$? i
    [ $rc -eq "$2" ] || fail "$1: exit code $rc instead of $2"
    for ((i = 0; i < 50; i++)); do
        [ -z "$(ranks)" ] && return
        sleep 0.1
    done
    fail "$1: a rank is left: $(ps -o pid,args -p "$(ranks | tr '\n' ',' | sed 's/,$//')")"
}
ranks() { # processes of this test's launches
    pgrep -f "expar train .*job.dump_folder" | while read -r pid; do
        [ "$(readlink "/proc/$pid/cwd")" = "$WORK" ] && echo "$pid"
    done
}
trains() { # NAME: it has made a step
    local i
    for ((i = 0; i < 600; i++)); do
        grep -q '^step:  *2 ' "$1/all.log" && return
        sleep 0.05
    done
    fail "$1 does not train"
}
# Processes under Open MPI's daemon of the other node: shims are its children, ranks theirs.
far_rank() {
    local daemon shim
    for daemon in $(pgrep -x orted); do
        [ "$(ip netns identify "$daemon")" = $B ] || continue
        for shim in $(pgrep -P "$daemon" -x expar); do
            pgrep -P "$shim" -x expar
        done
    done | head -n 1
}
launcher_of() {
    local pid
    for pid in $(pgrep -x expar); do
        tr '\0' ' ' < "/proc/$pid/cmdline" 2> /dev/null | grep -q -- "--hostfile hosts .*$1/d" && echo "$pid"
    done | head -n 1
}
one_error() { # NAME PATTERN
    [ "$(grep -c '^error: ' "$1/all.log")" = 1 ] || fail "$1: not one error"
    grep -q "^error: .*$2" "$1/all.log" || fail "$1: the error does not say: $2"
    ! grep -q '@expar-rank' "$1/all.log" || fail "$1: a message for the launcher is shown"
}
start good
finish good 0
grep -q '^done: step 3 of 3' good/all.log || fail "good: it has not trained"
[ "$(grep -c '^step: ' good/all.log)" = 3 ] || fail "good: not one line a step"
LOG_RANK=3 start spoken
finish spoken 0
[ "$(grep -c '^step: ' spoken/all.log)" = 3 ] || fail "LOG_RANK of a rank on the other node"
! grep -q "$(printf '\033')" spoken/all.log || fail "colours in a file"

cp tokens.bin bad.bin
printf '\377\377\0\0' | dd of=bad.bin bs=4 seek=100 conv=notrunc 2> /dev/null
start bad --training.dataset_path bad.bin
finish bad 1
one_error bad "token 65535"
start wrong --training.stepz 3
finish wrong 2
one_error wrong "training.stepz"

start killed --training.steps 100000
trains killed
kill -KILL "$(far_rank)"
finish killed 1
one_error killed "rank [23] was killed by signal 9"

start stopped --training.steps 100000
trains stopped
kill -INT "$(launcher_of stopped)"
finish stopped 0
grep -q '^stopped: step' stopped/all.log || fail "SIGINT: the run does not stop in order"

start twice --training.steps 100000
trains twice
kill -STOP "$(far_rank)"
kill -TERM "$(launcher_of twice)"
sleep 1.6 # a second signal counts from 1 s after the first, as the launcher saw it
kill -TERM "$(launcher_of twice)" || fail "one SIGTERM ended a run that could not save"
finish twice 1
echo "ok: launch over nodes"
