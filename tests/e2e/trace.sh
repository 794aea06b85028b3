#!/usr/bin/env bash
# profiling.*: every profile_freq steps a trace of each rank, in Chrome's format; the run's bits stay the same.
# expar trace summary: their sums.
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
fi

# The sums, of traces that a run wrote and of one whose sums are known.
summary=("$EXPAR" trace summary)
"${summary[@]}" traced/prof/*.json > sums.txt 2> sums.err || fail "trace summary: $(cat sums.err)"
for line in "step-3-rank-1.json: step 3, rank 1, " "^ops, compute stream .*calls .*total ms .*share .*mean us" \
    "^gemm  *[0-9]" "^dispatch backward  *[0-9]" "^(idle)  *[0-9]" "^layer 1 backward  *1 " "^layer  *forward ms .*exposed ms$" "^1  *[0-9.]* " "^all "; do
    expect_text sums.txt "$line"
done
# Two layers: the exchange of layer 0 is hidden for 1 ms by the GEMM, that of layer 1 not at all.
cat > known.json << 'JSON'
{"otherData": {"step": 7, "rank": 2, "events_left_out": 5}, "traceEvents": [
{"name": "thread_name", "ph": "M", "pid": 2, "tid": 2, "args": {"name": "ops, compute stream"}},
{"name": "thread_name", "ph": "M", "pid": 2, "tid": 3, "args": {"name": "ops, communication stream"}},
{"name": "gemm", "ph": "X", "ts": 1000, "dur": 1000, "pid": 2, "tid": 2, "args": {"layer": 0, "pass": "forward"}},
{"name": "sum", "ph": "X", "ts": 4000, "dur": 1500, "pid": 2, "tid": 2, "args": {"layer": 1, "pass": "backward"}},
{"name": "gemm", "ph": "X", "ts": 2000, "dur": 2000, "pid": 2, "tid": 2},
{"name": "inner", "ph": "X", "ts": 2500, "dur": 500, "pid": 2, "tid": 2},
{"name": "dispatch", "ph": "X", "ts": 4500, "dur": 1500, "pid": 2, "tid": 3, "args": {"layer": 0, "pass": "forward"}},
{"name": "plan", "ph": "X", "ts": 6000, "dur": 5000, "pid": 2, "tid": 3, "args": {"layer": 1, "pass": "forward"}}]}
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
plan                             1        5.000   50.0%       5000.0
dispatch                         1        1.500   15.0%       1500.0

layer       forward ms  backward ms     comm. ms   exposed ms
0                1.000        0.000        1.500        0.500   33.3%
1                0.000        1.500        5.000        5.000  100.0%
all              1.000        1.500        6.500        5.500   84.6%
exchange exposed, us a layer: forward 2750.0 of 3250.0, backward 0.0 of 0.0
TEXT
"${summary[@]}" known.json | diff known.txt - || fail "trace summary: other sums than known.txt"
# Combine in two halves: sent beside a GEMM but for 100 us, received by the compute stream itself.
cat > halves.json << 'JSON'
{"otherData": {"step": 7, "rank": 0}, "traceEvents": [
{"name": "thread_name", "ph": "M", "pid": 0, "tid": 2, "args": {"name": "ops, compute stream"}},
{"name": "thread_name", "ph": "M", "pid": 0, "tid": 3, "args": {"name": "ops, communication stream"}},
{"name": "grouped_forward", "ph": "X", "ts": 1000, "dur": 500, "pid": 0, "tid": 2, "args": {"layer": 0, "pass": "forward"}},
{"name": "combine send", "ph": "X", "ts": 1100, "dur": 500, "pid": 0, "tid": 3, "args": {"layer": 0, "pass": "forward"}},
{"name": "combine recv", "ph": "X", "ts": 1600, "dur": 200, "pid": 0, "tid": 2, "args": {"layer": 0, "pass": "forward"}}
]}
JSON
"${summary[@]}" halves.json > halves.txt || fail "trace summary: halves.json"
expect_text halves.txt "^exchange exposed, us a layer: forward 300.0 of 700.0, backward 0.0 of 0.0"
if command -v python3 > /dev/null; then
    "${summary[@]}" known.json traced/prof/*.json --json > sums.json || fail "trace summary --json"
    python3 - sums.json << 'PY' || fail "trace summary --json is wrong"
import json, sys
known, *traced = json.load(open(sys.argv[1]))
assert (known["step"], known["rank"], known["step_ms"], known["events_left_out"]) == (7, 2, 10, 5), known
compute = known["rows"][0]
assert compute["name"] == "ops, compute stream" and compute["idle_ms"] == 5.5, compute
assert compute["ops"][0] == {"name": "gemm", "calls": 2, "total_ms": 3, "share": 0.3, "mean_us": 1500}, compute
assert [(l["layer"], l["exposed_ms"]) for l in known["layers"]] == [(0, 0.5), (1, 5)], known["layers"]
assert known["exchange_us_a_layer"] == {"forward": {"all": 3250, "exposed": 2750}, "backward": {"all": 0, "exposed": 0}}, known
assert len(traced) == 4
for trace in traced:
    layers = {l["layer"]: l for l in trace["layers"]}
    for each in trace["exchange_us_a_layer"].values():
        assert 0 < each["exposed"] <= each["all"], trace["exchange_us_a_layer"]
    assert {0, 1} <= set(layers), layers
    for l in (0, 1):
        assert layers[l]["forward_ms"] > 0 and layers[l]["backward_ms"] > 0 and layers[l]["exposed_ms"] > 0, layers
PY
fi

# The parts add up to the step, of traces that a run wrote here and of one from an H200; each has its floor.
floors=("$EXPAR" trace floors)
"${floors[@]}" traced/prof/*.json > floors.txt 2> floors.err || fail "trace floors: $(cat floors.err)"
for line in "^part  *ms  *floor ms  *ratio  bound by" "^expert GEMMs wgrad  *[0-9.]*  *[0-9.]*  *[0-9.]*%  \(GEMM\|copy\)" "^gaps  *[0-9.]*  *0.000  *-" \
    "^sum  *[0-9]" "^step by the host's clock  *[0-9]" "^floors: cpu, of one rank: GEMM .* (measured)"; do
    expect_text floors.txt "$line"
done
expect_no floors.txt "more than 3 %"
recorded=$SOURCE/tests/e2e/traces/h200_debugmodel.json
"${floors[@]}" "$recorded" > recorded.txt || fail "trace floors: the recorded trace"
for line in "^optimizer  *2.282 *2.090 *91.6%  copy" "^attention backward  *1.142 *0.218 *19.1%  GEMM" "^gaps  *0.834 *0.000 *-" "^sum  *11.681 *5.562 *47.6%" \
    "^step by the host's clock  *11.637" "^the parts add up to 100.4 % of the step$" "^floors: h200, of one rank: GEMM 787 TFLOP/s, copy 4.23 TB/s (measured)"; do
    expect_text recorded.txt "$line"
done
sed 's/"step_us":[0-9.]*/"step_us":20000/' "$recorded" > long.json
"${floors[@]}" long.json | grep -q "58.4 % of the step: more than 3 % away" || fail "trace floors: parts that do not add up"
expect_no recorded.txt "the floors are above the time"
"${floors[@]}" "$recorded" --config "$SOURCE/configs/rank_slice_30b_a3b.toml" | grep -q "^the floors are above the time: the configuration or the hardware is not" ||
    fail "trace floors: another model's configuration"
printf 'name = "a \\"fast\\" GPU"\nlike = "h200"\n' > quoted.toml
"${floors[@]}" "$recorded" --gpu ./quoted.toml --json > quoted.json || fail "trace floors: a description with quotes in its name"
grep -qF '"hardware": "a \"fast\" GPU", ' quoted.json || fail "trace floors --json: quotes in a name: $(sed -n 2p quoted.json)"
# Moments by hand: 2 ms of GEMM of which 0.5 are an op inside, 1 ms of an exchange without anything beside it, 0.5 of a collective, 1 ms of nothing.
cat > parts.json << 'JSON'
{"otherData": {"step": 3, "rank": 0}, "traceEvents": [
{"name": "thread_name", "ph": "M", "pid": 0, "tid": 0, "args": {"name": "step"}},
{"name": "thread_name", "ph": "M", "pid": 0, "tid": 2, "args": {"name": "ops, compute stream"}},
{"name": "thread_name", "ph": "M", "pid": 0, "tid": 3, "args": {"name": "ops, communication stream"}},
{"name": "data wait", "ph": "X", "ts": 0, "dur": 250, "pid": 0, "tid": 0},
{"name": "gemm", "ph": "X", "ts": 1000, "dur": 2000, "pid": 0, "tid": 2, "args": {"layer": 0, "pass": "forward"}},
{"name": "rmsnorm_forward", "ph": "X", "ts": 1500, "dur": 500, "pid": 0, "tid": 2, "args": {"layer": 0, "pass": "forward"}},
{"name": "dispatch", "ph": "X", "ts": 2500, "dur": 1500, "pid": 0, "tid": 3, "args": {"layer": 0, "pass": "forward"}},
{"name": "reduce-scatter", "ph": "X", "ts": 3500, "dur": 1000, "pid": 0, "tid": 3},
{"name": "adamw", "ph": "X", "ts": 5500, "dur": 1000, "pid": 0, "tid": 2}]}
JSON
words=(--config "$SOURCE/tests/e2e/traces/tiny.toml")
"${floors[@]}" parts.json "${words[@]}" --gpu h200 --json > parts_gpu.json || fail "trace floors of a GPU's moments"
"${floors[@]}" parts.json "${words[@]}" --gpu cpu --json > parts_cpu.json || fail "trace floors of a CPU's moments"
"${floors[@]}" traced/prof/*.json "$recorded" --json > floors.json || fail "trace floors --json"
if command -v python3 > /dev/null; then
    python3 - floors.json parts_gpu.json parts_cpu.json << 'PY' || fail "trace floors --json is wrong"
import json, sys
traces, gpu, cpu = (json.load(open(path)) for path in sys.argv[1:])
assert len(traces) == 5
for t in traces:
    parts = {p["part"]: p for p in t["parts"]}
    assert abs(sum(p["ms"] for p in t["parts"]) - t["sum_ms"]) < 1e-6 * t["sum_ms"], t
    assert abs(sum(p["floor_ms"] for p in t["parts"]) - t["floor_ms"]) < 1e-6 * t["floor_ms"], t
    assert 0.97 < t["share_of_step"] < 1.03, (t["file"], t["share_of_step"])
    assert {"attention forward", "expert GEMMs dgrad", "norms", "router", "plan", "optimizer", "gaps"} <= set(parts), parts
    for p in t["parts"]:
        assert p["ratio"] is None or abs(p["ratio"] * p["ms"] - p["floor_ms"]) < 1e-6, p
ms = lambda t: {p["part"]: p["ms"] for p in t[0]["parts"] if p["ms"] > 0}
want = {"dense GEMMs forward": 1.5, "norms": 0.5, "exchange and sums": 1, "collectives, exposed": 0.5, "gaps": 1, "optimizer": 1}
near = lambda a, b: set(a) == set(b) and all(abs(a[k] - b[k]) < 1e-9 for k in a)
assert near(ms(gpu), want), ms(gpu)
assert {p["part"] for p in gpu[0]["parts"]} == set(want), gpu # no floors of what the trace does not hold
assert near(ms(cpu), want | {"gaps": 2}), ms(cpu) # the host is the device: also what is before the first op
assert gpu[0]["step_ms"] is None and gpu[0]["limits"]["measured"]
PY
fi
for wrong in "parts.json" "parts.json --gpu h200" "parts.json --gpu h2000" "$recorded --config no_such_file.toml" "known.json --gpu h200 --config parts.json"; do
    # shellcheck disable=SC2086
    "${floors[@]}" $wrong > bad.out 2> bad.err && fail "trace floors takes $wrong"
    [ "$(wc -l < bad.err)" = 1 ] && grep -q '^error: ' bad.err || fail "trace floors, $wrong: $(cat bad.err)"
done
"${summary[@]}" parts.json --gpu h200 > bad.out 2>&1
rc=$?
expect_rc 2 "trace summary with an option of floors"
echo '{"traceEvents": [' > cut.json
echo '[]' > list.json
echo '{"traceEvents": []}' > empty.json
echo '{"traceEvents": [{"name": "gemm", "ph": "X", "ts": 1, "tid": 2}]}' > endless.json
head -c 100 /dev/urandom > noise.json
printf '{"traceEvents": [{"name": "gemm", "ph": "X", "ts": 1%0400d, "dur": 1, "tid": 2}]}' 0 > huge.json
echo '{"traceEvents": [{"name": "gemm", "ph": "X", "ts": 1e308, "dur": 1e308, "tid": 2}]}' > infinite.json
for bad in cut.json list.json empty.json endless.json huge.json infinite.json noise.json no_such_file.json .; do
    "${summary[@]}" "$bad" > bad.out 2> bad.err && fail "trace summary takes $bad"
    [ "$(wc -l < bad.err)" = 1 ] || fail "trace summary, $bad: $(cat bad.err)"
    grep -q '^error: ' bad.err && grep -qF "$bad" bad.err || fail "trace summary, $bad: $(cat bad.err)"
done
"${summary[@]}" known.json noise.json --json > half.json 2> bad.err && fail "trace summary: a bad file behind a good one"
[ ! -s half.json ] || fail "trace summary --json prints half an array"
"${summary[@]}" known.json > /dev/full 2> bad.err && fail "trace summary writes to a full disk"
[ "$(cat bad.err)" = "error: cannot write to standard output" ] || fail "a full disk: $(cat bad.err)"
"${summary[@]}" > bad.out 2>&1 && fail "trace summary takes no file at all"

# A folder that cannot be written costs the trace, not the run.
mkdir blocked && echo > blocked/prof
train 1 blocked --training.steps 3 --profiling.enable_profiling --profiling.profile_freq 3 \
    --profiling.save_traces_folder prof
expect_rc 0 "a run that cannot write its trace"
expect_text blocked.log "no trace of step 3"
echo "traces hold phases, layers, ops, exchanges; their sums are right"
