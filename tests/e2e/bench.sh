#!/usr/bin/env bash
# The benches and the doctor: figures that can be read, failures that become rows, and no hang without memory.
. "$(dirname "$0")/lib.sh"

command -v python3 > /dev/null || { echo "skipped: no python3 to read JSON with"; exit 77; }
read_json() { # FILE EXPRESSION: python's verdict on `d`
    python3 -c "import json, sys; d = json.load(open('$1')); sys.exit(0 if ($2) else 1)" || fail "$1: not ($2)"
}
small=(--config tiny.toml --steps 2 --warmup 1)

"$EXPAR" bench step "${small[@]}" --json > step.json 2> step.log || fail "bench step"
read_json step.json "d['variants'][0]['step_s']['n'] == 2 and d['variants'][0]['ratio']['median'] > 0"
read_json step.json "d['variants'][0]['tokens'] == 64 and d['variants'][0]['phases']['expert GEMMs']['flops'] > 0"
"$EXPAR" bench step "${small[@]}" --training.local_batch_size 4 > step.txt 2> step.log || fail "bench step as text"
grep -q "128 tokens" step.txt || fail "a configuration key did not reach bench step"
"$EXPAR" bench step "${small[@]}" --ep --ranks 2 --json > ep_step.json 2> step.log || fail "bench step --ep"
read_json ep_step.json "[v['ep'] for v in d['variants']] == [1, 2]"

"$EXPAR" bench ops --op 'axpy' --seconds 0 --json > ops.json || fail "bench ops"
read_json ops.json "len(d) > 0 and all(r['op'] == 'axpy' and r['limit'] > 0 for r in d)"

read_json ops.json "all(r['floor_s'] > 0 and r['bound'] == 'copy' for r in d)"

# The table of users' shapes, far smaller: every shape runs, beside its floor and the best of its op.
"$EXPAR" bench ops --shapes users --device cpu --scale 256 --seconds 0 > shapes.txt 2> shapes.log || fail "bench ops --shapes users"
expect_no shapes.txt "not timed"
expect_no shapes.txt "left out"
[ "$(grep -c '^\(gemm\|grouped_\|attention_\|rmsnorm_\|qknorm_\|silu_\|router_\|embed_\|adamw\|cross_entropy\).* \(copy\|GEMM\) .*%.*%' shapes.txt)" -ge 300 ] || fail "too few shapes"
expect_text shapes.txt "^grouped_wgrad  *< 5  *[0-9]* "
expect_text shapes.txt " shapes are under 60 % of the best of their op and size, [0-9]* of them without a reason$"
"$EXPAR" bench ops --shapes users --device cpu --scale 256 --seconds 0 --op 'r*' --json > shapes.json 2> shapes.log || fail "bench ops --shapes --json"
read_json shapes.json "{r['op'] for r in d} == {'rmsnorm_forward', 'rmsnorm_backward', 'router_forward', 'router_backward', 'router_linear_backward'}"
read_json shapes.json "all(abs(r['floor_s'] / r['seconds'] / r['share_of_floor'] - 1) < 1e-4 and r['under'] == (r['share_of_best'] < 0.6) for r in d)"
read_json shapes.json "all(max(r['share_of_best'] for r in d if r['op'] == op) >= 1 for op in {r['op'] for r in d})"
"$EXPAR" bench ops --shapes users --device cpu --scale 256 --seconds 0 --budget 0.001 > cut.txt 2> shapes.log || fail "bench ops --shapes without time"
expect_text cut.txt "^[0-9]* shapes were left out: 0.001 s are over$"

"$EXPAR" bench ep --ranks 1,2 --tokens 16,64 --dim 32 --experts 8 --top-k 2 --seconds 0.01 --json > ep.json || fail "bench ep"
read_json ep.json "len(d) == 24 and all(r['dispatch_s'] > 0 and r['share_of_memcpy'] > 0 for r in d)"
"$EXPAR" bench ep --ranks 2 --experts 7,8 --tokens 8 --dim 8 --top-k 2 --seconds 0.01 --routing random --json > odd.json
rc=$?
expect_rc 1 "bench ep with a row that fails"
read_json odd.json "'cannot be shared equally' in d[0]['error'] and d[-1]['dispatch_s'] > 0"

"$EXPAR" bench ep --ranks 2 --tokens 16 --dim 32 --experts 8 --top-k 2 --sms 8,16 --routing spread --seconds 0.01 --backward --json > backward.json ||
    fail "bench ep --backward"
read_json backward.json "[r['sms'] for r in d] == [8, 8, 16, 16] and all(r['link_bytes_per_s'] > 0 and r['link_one_way_bytes_per_s'] > 0 for r in d)"
read_json backward.json "all(abs(r['link_bytes'] / r[op + '_s'] / r['link_bytes_per_s'] / r[op + '_share_of_link'] - 1) < 1e-6
    for r in d for op in ('dispatch', 'combine', 'combine_backward', 'dispatch_backward'))"
NGPU=3 "$EXPAR" bench ep --device cpu --tokens 8 --dim 8 --experts 6 --top-k 2 --seconds 0.01 --routing random --json > ngpu.json || fail "NGPU=3 bench ep"
read_json ngpu.json "[r['ranks'] for r in d] == [3, 3]"

# Ranks that are processes: the same rows; a row that cannot be is one of them, and one error says so.
if command -v mpirun > /dev/null; then
    small_ep=(--tokens 16,64 --dim 32 --experts 8 --top-k 2 --seconds 0.01 --routing random,modulo)
    "$EXPAR" bench ep --ranks 1,2 "${small_ep[@]}" --job.ranks processes --json > ep_processes.json || fail "bench ep with processes"
    "$EXPAR" bench ep --ranks 1,2 "${small_ep[@]}" --job.ranks threads --json > ep_threads.json || fail "bench ep with threads"
    read_json ep_processes.json "len(d) == 12 and all(r['dispatch_s'] > 0 and ('link_bytes_per_s' in r) == (r['ranks'] == 2) for r in d)"
    read_json ep_processes.json "[[r[k] for k in ('ranks', 'tokens', 'routing', 'transport', 'moved_bytes')] for r in d] ==
        [[r[k] for k in ('ranks', 'tokens', 'routing', 'transport', 'moved_bytes')] for r in json.load(open('ep_threads.json'))]"
    "$EXPAR" bench ep --ranks 2 --experts 7,8 --tokens 8 --dim 8 --top-k 2 --seconds 0.01 --routing random --job.ranks processes > odd.txt 2> odd.log
    rc=$?
    expect_rc 1 "bench ep with processes and a row that fails"
    [ "$(grep -c '^error: ' odd.log)" = 1 ] || fail "not one error"
    [ "$(grep -c 'failed: .*cannot be shared equally' odd.txt)" = 2 ] || fail "the rows that fail"
    [ "$(grep -c ' 8 .*random *\(p2p\|a2a\) .*%' odd.txt)" = 2 ] || fail "the rows after those that fail"
    [ "$(grep -c '^ R  ' odd.txt)" = 1 ] || fail "not one head"
    "$EXPAR" bench scaling --config tiny.toml --ranks 1,2 --batch 65536,1 --mode weak --steps 1 --warmup 1 \
        --job.threads_per_rank 1 --job.ranks processes --memory-limit 3G --json > scaling.json || fail "bench scaling with processes"
    read_json scaling.json "['error' in r for r in d] == [True, True, False, False] and 'memory' in d[1]['error']"
    read_json scaling.json "[r['ranks_are'] for r in d[2:]] == ['threads', 'processes'] and d[3]['memory_gib'] > d[2]['memory_gib']"
fi

# Weak rows of one and two ranks; one batch is too large for the limit, and the table goes on past it.
"$EXPAR" bench scaling --config tiny.toml --ranks 1,2 --batch 65536,1 --mode weak --steps 1 --warmup 1 \
    --job.threads_per_rank 1 --memory-limit 3G --json > scaling.json || fail "bench scaling"
read_json scaling.json "['error' in r for r in d] == [True, True, False, False]"
read_json scaling.json "'memory' in d[0]['error'] and d[3]['tokens_per_s'] > 0 and d[3]['memory_gib'] > 0"
"$EXPAR" bench scaling --config tiny.toml --ranks 1,2 --batch 1 --mode strong --steps 1 --warmup 1 \
    --job.threads_per_rank 1 --json > strong.json || fail "strong scaling"
read_json strong.json "[r['global_batch'] for r in d] == [2, 2]"

# Less address space than one buffer of the GEMM: an error, where OpenBLAS alone would try for ever.
timeout 60 bash -c "ulimit -v 260000; exec '$EXPAR' train --job.config_file tiny.toml --job.dump_folder nothing" > limit.log 2>&1
rc=$?
[ "$rc" -ne 124 ] || fail "training without address space hangs"
[ "$rc" -ne 0 ] || fail "training without address space claims to work"

for wrong in "bench" "bench stap" "bench ep --ranks two" "bench ep --transport tcp" "bench ep --dtype f64" \
    "bench ep --job.ranks many" "bench ep --device tpu" "bench ep --sms few" \
    "bench scaling --memory-limit much" "bench ops --shapes all" "bench ops --scale 4" "bench ops --device tpu" "bench scaling --mode sideways" "bench step --steps 0" "doctor --jason"; do
    # shellcheck disable=SC2086
    "$EXPAR" $wrong > wrong.txt 2> wrong.log
    rc=$?
    expect_rc 2 "$wrong"
done
for kind in "" step ops ep scaling; do
    # shellcheck disable=SC2086
    "$EXPAR" bench $kind --help | grep -q "examples:" || fail "bench $kind --help has no examples"
done

"$EXPAR" doctor --json --no-mpirun > doctor.json || fail "doctor"
read_json doctor.json "d['can_train'] and all('advice' in f for f in d['findings'] if not f['ok'])"
"$EXPAR" doctor --no-mpirun | grep -q "can train" || fail "doctor as text"
