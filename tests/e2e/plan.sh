#!/usr/bin/env bash
# expar plan: every configuration can be planned without a GPU; what it advises fits; what is wrong is one clear error.
. "$(dirname "$0")/lib.sh"

command -v python3 > /dev/null || { echo "skipped: no python3 to read JSON with"; exit 77; }
plan() { # FILE ARGUMENTS: the JSON to FILE, exit code in $rc
    local file=$1
    shift
    "$EXPAR" plan "$@" --json > "$file" 2> "$file.log"
    rc=$?
}
holds() { # FILE EXPRESSION: python's verdict on `d`
    python3 -c "import json, sys; d = json.load(open('$1')); sys.exit(0 if ($2) else 1)" || fail "$1: not ($2)"
}

for config in "$SOURCE"/configs/*.toml; do
    name=$(basename "$config" .toml)
    nodes=4,8
    [ "$name" != qwen3_235b_a22b_deepep ] || nodes=12,16 # 68 GiB of parameters a GPU, and as much of gradients
    plan "$name.json" "$config" --gpu b200 --nodes "$nodes" --batch 1
    expect_rc 0 "plan of $name"
    holds "$name.json" "len(d) == 2 and all(r['fits'] and r['memory_gib'] > 0 for r in d)"
    holds "$name.json" "all(abs(sum(v for k, v in r.items() if k.endswith('_gib') and k not in ('memory_gib', 'room_gib')) / r['memory_gib'] - 1) < 1e-9 for r in d)"
    case $name in debug_moe) ;; *) holds "$name.json" "all(r['tokens_per_s_gpu'] > 0 and r['step_s'] > 0 for r in d)" ;; esac
done

# The rank slice: what the real run reserved on a GPU (117.93 GiB), less the memory for pairs of tokens that cuDNN's
# attention backward took, and the router's fp32 copies, and half of the master weights, and the larger chunks of the head, which attention's gradients share; a batch too large, and what is advised instead.
slice=("$SOURCE/configs/rank_slice_30b_a3b.toml" --gpu h200 --gpus-per-node 1)
plan slice.json "${slice[@]}"
holds slice.json "abs(d[0]['memory_gib'] / 108.82 - 1) < 1e-3 and d[0]['exchange_s'] == 0 and d[0]['link_bytes'] == 0"
plan large.json "${slice[@]}" --batch 10
expect_rc 1 "a plan of which nothing fits"
holds large.json "not d[0]['fits'] and 'selective' in d[0]['advice'] and 'batch ' in d[0]['advice']"
advised=$(grep -o 'batch [0-9]* fits' large.json | grep -o '[0-9]*')
plan advised.json "${slice[@]}" --batch "$advised,$((advised + 1))"
expect_rc 0 "the advised batch"
holds advised.json "[r['fits'] for r in d] == [True, False]"
plan mode.json "${slice[@]}" --batch 10 --activation_checkpoint.mode selective
expect_rc 0 "the advised recomputation"
"$EXPAR" plan "${slice[@]}" --batch 10 > large.txt
rc=$?
expect_rc 1 "the same as text"
grep -q "out of memory: .* GiB too much (activations .*selective.*; batch $advised fits" large.txt || fail "text: $(cat large.txt)"
plan none.json "${slice[@]}" --moe.num_experts 24 --batch 1 --gpu a100 --activation_checkpoint.mode full
holds none.json "d[0]['advice'].startswith('no batch fits') and 'more nodes' in d[0]['advice']"
# With a fixed global batch only divisors of a rank's rows are runs.
plan global.json "${slice[@]}" --batch 9 --training.global_batch_size 9
holds global.json "d[0]['advice'].endswith('batch 3 fits')"
plan divisor.json "${slice[@]}" --batch 3 --training.global_batch_size 9
expect_rc 0 "the advised divisor"
# Neither a smaller batch nor recomputation alone: both. Then nothing at all.
dense=(--model.flavor 8B --gpu h100 --training.seq_len 32768)
plan both.json "${dense[@]}" --batch 4
holds both.json "'\"full\" and batch' in d[0]['advice']"
plan followed.json "${dense[@]}" --activation_checkpoint.mode full --batch "$(grep -o 'batch [0-9]* need' both.json | grep -o '[0-9]*')"
expect_rc 0 "recomputation and batch as advised"
plan never.json --model.flavor 32B --gpu h100 --nodes 64 --batch 1
holds never.json "'not sharded' in d[0]['advice']"

# Expert parallelism: less memory, bytes inside a node, then between nodes; degrees that do not divide are a row with the reason.
moe=("$SOURCE/configs/qwen3_30b_a3b_deepep.toml" --gpu h200 --batch 1 --parallelism.expert_parallel_degree)
plan ep8.json "${moe[@]}" 8 --nodes 1,2
holds ep8.json "all(r['ep'] == 8 and r['link_bytes'] > 0 and r['network_bytes'] == 0 for r in d) and d[1]['memory_gib'] < d[0]['memory_gib']"
plan ep16.json "${moe[@]}" 16 --nodes 1,2
expect_rc 0 "a row of two"
holds ep16.json "'does not divide the 8 ranks' in d[0]['error'] and '--ep 1, 2, 4 or 8' in d[0]['error'] and d[1]['ep'] == 16 and d[1]['network_bytes'] > 0"
plan p2p.json "${moe[@]}" 16 --nodes 2 --deepep.transport p2p
expect_rc 1 "p2p between nodes"
holds p2p.json "'2 nodes' in d[0]['error']"
holds ep16.json "d[1]['transport'] == 'a2a'"
plan forwarded.json "${moe[@]}" 16 --nodes 2 --deepep.transport hierarchical
holds forwarded.json "d[0]['transport'] == 'hierarchical' and d[0]['network_bytes'] > 0"
# Nodes of six: the second group of four lies on two of them.
plan straddling.json "${moe[@]}" 4 --nodes 2 --gpus-per-node 6 --deepep.transport p2p
holds straddling.json "'2 nodes' in d[0]['error']"
plan large_ep.json "${moe[@]}" 64 --nodes 8
holds large_ep.json "'at most 32' in d[0]['error']"
# Rows that are kept are not dispatched again; forced load on neighbouring experts needs fewer rows.
plan kept.json "${moe[@]}" 8 --moe.save_dispatched yes
plan again.json "${moe[@]}" 8 --moe.save_dispatched no
plan forced.json "${moe[@]}" 8 --moe.save_dispatched no --debug.moe_force_load_balance
python3 - <<'PY' || fail "bytes of kept, repeated and forced exchanges"
import json
kept, again, forced = (json.load(open(f + ".json"))[0]["link_bytes"] for f in ("kept", "again", "forced"))
assert abs(again / kept - 5 / 4) < 1e-9 and forced < again / 4, (kept, again, forced)
PY
plan fp32.json "${moe[@]}" 8 --training.dtype float32
holds fp32.json "'step_s' not in d[0] and 'float32' in d[0]['error']"

# What an EP degree needs is said in terms of this command, and of ranks where they share a CPU.
plan ep7.json "${moe[@]}" 7 --nodes 3
expect_rc 1 "EP 7"
holds ep7.json "'does not divide the 24 ranks (--nodes 3, --gpus-per-node 8): plan with --ep 1, 2, 4 or 8,' in d[0]['error'] and 'NGPU' not in d[0]['error']"
plan cpu.json "$SOURCE/configs/debug_moe.toml" --gpu cpu --ep 2
holds cpu.json "'does not divide the 1 rank (' in d[0]['error'] and 'ranks' in d[0]['error']"
"$EXPAR" plan "$SOURCE/configs/debug_moe.toml" --gpu cpu --gpus-per-node 2 --ep 2 > cpu.txt || fail "a plan for a CPU"
grep -q '2 cores and 32.0 GiB a node, shared by its ranks: 2 a node (--gpus-per-node)' cpu.txt && grep -q 'tok/s/rank' cpu.txt &&
    grep -q 'write-profile' cpu.txt && ! grep -q 'GPU' cpu.txt || fail "$(cat cpu.txt)"

# Between nodes: reductions and gathers hide behind the layers while the network keeps up with them, and are said to.
plan nodes.json "${moe[@]}" 8 --gpu b200 --batch 8 --recompute selective --nodes 1,16 --scaling weak
holds nodes.json "d[1]['of_first_percent'] >= 96 and d[1]['exposed_reduced_s'] + d[1]['exposed_gathered_s'] < 0.1 * d[1]['reduced_s']"
holds nodes.json "abs(d[1]['exposed_forward_s'] + d[1]['exposed_backward_s'] - d[1]['exchange_s']) < 1e-12"
plan slow.json "${moe[@]}" 8 --gpu b200 --batch 8 --recompute selective --nodes 16 --network 5
holds slow.json "d[0]['exposed_reduced_s'] > 0.5 * d[0]['reduced_s'] and d[0]['gradients_s'] > d[0]['exposed_reduced_s']"
"$EXPAR" plan "${moe[@]}" 8 --gpu b200 --nodes 16 --explain > explained.txt || fail "--explain"
for words in 'exchange, ms: .* exposed forward' 'gradients, ms: .* of reductions' 'takes 16 SMs of 148' 'not inside a node first' "as many SMs on h200"; do
    grep -q -- "$words" explained.txt || fail "--explain lacks '$words': $(cat explained.txt)"
done

# Reserving takes time in proportion to the layers: 8000 of them, whose experts are reduced in over a million buckets.
timeout 60 "$EXPAR" plan "${moe[@]}" 8 --nodes 16 --model.n_layers 8000 --parallelism.bucket_mb 1 > deep.txt
rc=$?
expect_rc 1 "8000 layers in less than 60 s, where 1 s is enough"

# A suggestion that differs by nothing is not "-0.0 %" slower.
"$EXPAR" plan "$SOURCE/configs/qwen3_30b_a3b_deepep.toml" --gpu cpu --training.dtype float32 --suggest --nodes 1024 > same.txt || fail "plan --suggest for CPUs"
expect_text same.txt "as fast with overlap$"
expect_no same.txt "[+-]0\.0 %"

# Errors: exit code 2 and the word that is wrong.
wrong() { # WORDS ARGUMENTS
    local words=$1
    shift
    "$EXPAR" plan "$@" > wrong.out 2> wrong.err
    rc=$?
    expect_rc 2 "plan $*"
    [ "$(grep -c '^error:' wrong.err)" -eq 1 ] && grep -q -- "$words" wrong.err || fail "plan $*: $(cat wrong.err)"
}
wrong 'did you mean "h200"' tiny.toml --gpu h20
wrong 'nothing.toml' nothing.toml
wrong -- '--nodes' tiny.toml --nodes 0
wrong -- '--batch' tiny.toml --batch 1,x
wrong -- '--batch: "": wanted' tiny.toml --batch 4,
wrong -- '--batch: "": wanted' tiny.toml --batch ,4
wrong -- '--recompute: "": it can be' tiny.toml --recompute none,
wrong -- '--price needs --tokens' tiny.toml --price 3
wrong -- '--best needs --suggest' tiny.toml --best 3
wrong -- 'gpus-per-node' tiny.toml --gpus-per-node 0
wrong 'training.seq_length' tiny.toml --training.seq_length 5
wrong 'unexpected' tiny.toml another.toml
"$EXPAR" plan --help | grep -q -- '--network' || fail "no help"
