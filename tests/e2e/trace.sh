#!/usr/bin/env bash
# profiling.*: every profile_freq steps a trace of each rank, in Chrome's format; the run's bits stay the same.
. "$(dirname "$0")/lib.sh"

train 2 traced --training.steps 6 --profiling.enable_profiling --profiling.profile_freq 3 \
    --profiling.save_traces_folder prof --parallelism.expert_parallel_degree 2
expect_rc 0 "a traced run"
train 2 plain --training.steps 6 --parallelism.expert_parallel_degree 2
expect_rc 0 "the same run without traces"
[ ! -e plain/traces ] || fail "traces without profiling.enable_profiling"
for shard in traced/checkpoint/step-6/*.safetensors; do
    cmp -s "$shard" "plain/checkpoint/step-6/$(basename "$shard")" || fail "tracing changes the run: $shard"
done

found=$(cd traced/prof && echo *)
[ "$found" = "step-3-rank-0.json step-3-rank-1.json step-6-rank-0.json step-6-rank-1.json" ] ||
    fail "traces are $found"
for trace in traced/prof/*.json; do
    for name in "data wait" "forward and backward" "optimizer" "loss all-reduce" "layer 0 forward" \
        "layer 1 forward" "layer 0 backward" "layer 1 backward" "gemm" "plan" "dispatch" "combine"; do
        grep -q "\"name\":\"$name" "$trace" || fail "no \"$name\" in $trace"
    done
done
grep -q '"name":"checkpoint"' traced/prof/step-6-rank-0.json || fail "the last step's checkpoint is not in its trace"
if command -v python3 > /dev/null; then
    python3 - traced/prof/*.json << 'PY' || fail "a trace is wrong"
import json, sys
for path in sys.argv[1:]:
    trace = json.load(open(path))
    spans = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert trace["otherData"]["events_left_out"] == 0, path
    assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in spans), path
    layers = [e for e in spans if e["tid"] == 1]
    assert len(layers) == 4, (path, len(layers))
    end = lambda e: e["ts"] + e["dur"]
    whole = [e for e in spans if e["name"] == "forward and backward"][0]
    assert all(e["ts"] >= whole["ts"] - 1 and end(e) <= end(whole) + 1 for e in layers), path
PY
fi

# A folder that cannot be written costs the trace, not the run.
mkdir blocked && echo > blocked/prof
train 1 blocked --training.steps 3 --profiling.enable_profiling --profiling.profile_freq 3 \
    --profiling.save_traces_folder prof
expect_rc 0 "a run that cannot write its trace"
expect_text blocked.log "no trace of step 3"
echo "traces hold phases, layers, ops, exchanges"
