#!/usr/bin/env bash
# profiling.*: every profile_freq steps a trace of each rank, in Chrome's format; the run's bits stay the same.
# scripts/trace_summary.py: its sums.
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
    rows = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"]
    assert rows[:3] == ["step", "layers", "ops, compute stream"], (path, rows)
PY

    # The sums, of traces that a run wrote and of one whose sums are known.
    summary=$SOURCE/scripts/trace_summary.py
    python3 "$summary" traced/prof/*.json > sums.txt 2> sums.err || fail "trace_summary: $(cat sums.err)"
    for line in "step-3-rank-1.json: step 3, rank 1, " "^ops, compute stream .*calls .*total ms .*share .*mean us" \
        "^gemm  *[0-9]" "^dispatch backward  *[0-9]" "^(idle)  *[0-9]" "^layer 1 backward  *1 "; do
        expect_text sums.txt "$line"
    done
    cat > known.json << 'JSON'
{"otherData": {"step": 7, "rank": 2, "events_left_out": 5}, "traceEvents": [
{"name": "thread_name", "ph": "M", "pid": 2, "tid": 2, "args": {"name": "ops, compute stream"}},
{"name": "thread_name", "ph": "M", "pid": 2, "tid": 3, "args": {"name": "ops, communication stream"}},
{"name": "gemm", "ph": "X", "ts": 1000, "dur": 1000, "pid": 2, "tid": 2},
{"name": "sum", "ph": "X", "ts": 4000, "dur": 1500, "pid": 2, "tid": 2},
{"name": "gemm", "ph": "X", "ts": 2000, "dur": 2000, "pid": 2, "tid": 2},
{"name": "inner", "ph": "X", "ts": 2500, "dur": 500, "pid": 2, "tid": 2},
{"name": "plan", "ph": "X", "ts": 5000, "dur": 6000, "pid": 2, "tid": 3}]}
JSON
    cat > known.txt << 'TEXT'
known.json: step 7, rank 2, 10.000 ms
5 events had no room: sums are too small

ops, compute stream    calls     total ms   share      mean us
gemm                       2        3.000   30.0%       1500.0
sum                        1        1.500   15.0%       1500.0
inner                      1        0.500    5.0%        500.0
(idle)                              5.500   55.0%

ops, communication stream    calls     total ms   share      mean us
plan                             1        6.000   60.0%       6000.0
TEXT
    python3 "$summary" known.json | diff known.txt - || fail "trace_summary: other sums than known.txt"
    echo '{"traceEvents": [' > cut.json
    echo '[]' > list.json
    echo '{"traceEvents": []}' > empty.json
    echo '{"traceEvents": [{"name": "gemm", "ph": "X", "ts": 1, "tid": 2}]}' > endless.json
    head -c 100 /dev/urandom > noise.json
    python3 -c 'print("{\"traceEvents\": [{\"name\": \"gemm\", \"ph\": \"X\", \"ts\": 1%s, \"dur\": 1, \"tid\": 2}]}" % ("0" * 400))' > huge.json
    echo '{"traceEvents": [{"name": "gemm", "ph": "X", "ts": 1e308, "dur": 1e308, "tid": 2}]}' > infinite.json
    for bad in cut.json list.json empty.json endless.json huge.json infinite.json noise.json no_such_file.json .; do
        python3 "$summary" "$bad" > bad.out 2> bad.err && fail "trace_summary takes $bad"
        [ "$(wc -l < bad.err)" = 1 ] || fail "trace_summary, $bad: $(cat bad.err)"
        expect_text bad.err "^trace_summary: $bad: "
    done
    python3 "$summary" known.json > /dev/full 2> bad.err && fail "trace_summary writes to a full disk"
    [ "$(cat bad.err)" = "trace_summary: cannot write: No space left on device" ] || fail "a full disk: $(cat bad.err)"
    python3 "$summary" > bad.out 2>&1 && fail "trace_summary takes no file at all"
fi

# A folder that cannot be written costs the trace, not the run.
mkdir blocked && echo > blocked/prof
train 1 blocked --training.steps 3 --profiling.enable_profiling --profiling.profile_freq 3 \
    --profiling.save_traces_folder prof
expect_rc 0 "a run that cannot write its trace"
expect_text blocked.log "no trace of step 3"
echo "traces hold phases, layers, ops, exchanges; their sums are right"
