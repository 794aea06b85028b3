#!/bin/bash
# All GPUs of a machine, one process a GPU: a whole model, scaling, the expert exchange beside the link, starts, failures, checkpoints.
#   bench/gpu_scaling.sh BUILD_FOLDER [OUTPUT_FOLDER]
# BUILD_FOLDER may come from another machine (cmake --preset cuda -DXP_BUNDLE_DEPS=ON): only bin/ and lib/ are used, and configs/. At most TOTAL (540)
# seconds; every command has a limit of its own, and every figure is written to OUTPUT_FOLDER/rows.jsonl as soon as it is there. At the
# end: OUTPUT_FOLDER/table.md and scaling.json. Exit code 0: all that was wanted ran, and was right.
# PARTS chooses, in this order:
#   model     MODEL (configs/qwen3_30b_a3b_deepep.toml; two GPUs hold configs/qwen3_10b_a1b_deepep.toml), EP = GPUs, 4 and 8 x 4096 a GPU, natural and forced routing, deepep and standard
#   scaling   LAYERS (8) layers of the rank slice, 16 experts a rank: EP = GPUs and EP 1, weak and strong, on all GPUs, half of them, ..., one
#   exchange  expar bench ep
#   starts    STARTS (20) starts of gpu_ranks.sh
#   faults    ranks that are killed in dispatch and combine (gpu_ranks.sh)
#   resume    save at EP = GPUs, go on at EP = GPUs and at half of it
#   tests     test_ep and test_comm_device
# DRY=1 prints the commands. GPUS=N uses fewer. Without a GPU:
#   GPUS=2 TINY=1 GPU_OPTIONS="--training.backend cpu --job.ranks processes --job.threads_per_rank 1" bench/gpu_scaling.sh build/release
set -u
build=${1:?usage: gpu_scaling.sh BUILD_FOLDER [OUTPUT_FOLDER]}
out=${2:-$(mktemp -d)}
parts=${PARTS:-model scaling exchange starts faults resume tests}
total=${TOTAL:-540}
read -r -a gpu <<< "${GPU_OPTIONS:---training.backend cuda}"
mkdir -p "$out"
build=$(cd "$build" && pwd)
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
summary=$out/scaling_summary.txt
rows=$out/rows.jsonl
: > "$summary"
: > "$rows"
. bench/gpu_common.sh
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
n_gpus=${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)}
[ "$n_gpus" -ge 1 ] || { echo "no GPU: set GPUS and GPU_OPTIONS"; exit 2; }
device=cuda
case " ${gpu[*]} " in *" --training.backend cpu "*) device=cpu ;; esac
[ $device = cpu ] || nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | sort | uniq -c | tee -a "$summary"

tokens=$work/tokens.bin
python3 - "$tokens" << 'PY'
import array, random, sys
random.seed(1)
array.array("I", (random.randrange(512) for _ in range(1000000))).tofile(open(sys.argv[1], "wb"))
PY

# go NAME SECONDS COMMAND...: as run(), within what is left of the total
go() {
    local name=$1 limit=$2 left=$((total - SECONDS - 10))
    shift 2
    if [ "${DRY:-0}" = 1 ]; then
        printf '%s (%s s): NGPU=%s %s\n' "$name" "$limit" "${NGPU:-}" "$*"
        return 0
    fi
    if [ $left -lt 5 ]; then
        say "== $name: left out, no time"
        failed=1
        return 1
    fi
    run "$name" $((limit < left ? limit : left)) "$@"
}

# row PART NAME RC KEY=VALUE...: a line of rows.jsonl, with what NAME's metrics and output tell
cat > "$work/row.py" << 'PY'
import json, re, statistics, sys
rows, log, metrics, part, name, rc = sys.argv[1:7]
row = {"part": part, "name": name, "exit": int(rc)}
for word in sys.argv[7:]:
    key, value = word.split("=", 1)
    try:
        row[key] = json.loads(value)
    except ValueError:
        row[key] = value
try:
    steps = [json.loads(line) for line in open(metrics)]
except (OSError, ValueError):
    steps = []
steady = [s for s in steps if s["step"] >= 3] or steps
if steady:
    for key in ("tps", "time_s", "memory_gib"):
        row[key] = statistics.median(s[key] for s in steady)
    row["steps"], row["loss"] = steps[-1]["step"], steps[-1]["loss"]
    row["losses"] = {str(s["step"]): s["loss"] for s in steps}
try:
    text = open(log, errors="replace").read()
except OSError:
    text = ""
error = re.search(r"^error: (.*)", text, re.M)
if error:
    row["error"] = error.group(1)[:300]
open(rows, "a").write(json.dumps(row) + "\n")
PY
row() {
    [ "${DRY:-0}" = 1 ] && return
    python3 "$work/row.py" "$rows" "$out/$2.txt" "$work/$2/metrics.jsonl" "$@"
    [ "$1" = "exchange" ] || tail -1 "$rows" | cut -c1-240
}

# train NAME SECONDS GPUS STEPS OPTIONS...
train() {
    local name=$1 limit=$2 n=$3 steps=$4
    shift 4
    NGPU=$n go "$name" "$limit" "$build/bin/expar" train "$@" --training.dataset tokens --training.dataset_path "$tokens" \
        --training.steps "$steps" --metrics.log_freq 1 --job.dump_folder "$work/$name" --comm.train_timeout_seconds 60 "${gpu[@]}"
}
natural=(--debug.no_moe_force_load_balance)
forced=(--debug.moe_force_load_balance)
tiny=(--model.flavor tiny_moe --training.seq_len 64 --lr_scheduler.warmup_steps 2)
small=0
[ "${TINY:-0}" = 1 ] && small=1

# ---- a whole model
plan_value() { # FILE KEY
    python3 -c 'import json, sys; v = json.load(open(sys.argv[1]))[0].get(sys.argv[2], ""); print(f"{v:.2f}" if isinstance(v, float) else v)' "$1" "$2" 2> /dev/null
}
model() { # BACKEND ROUTING BATCH
    local backend=$1 routing=$2 batch=$3 name=model_$1_$2_$3 options=() rc fits
    options=(--job.config_file "${MODEL:-configs/qwen3_30b_a3b_deepep.toml}" --checkpoint.no_enable)
    [ $small = 1 ] && options=("${tiny[@]}")
    options+=(--training.local_batch_size "$batch" --parallelism.expert_parallel_degree "$n_gpus"
        --parallelism.expert_parallel_comm_backend "$backend")
    "$build/bin/expar" plan "${options[@]}" --gpus-per-node "$n_gpus" --gpu "${PLAN_GPU:-h200}" --batch "$batch" --json > "$out/$name.plan" 2> "$work/plan.err"
    fits=$(plan_value "$out/$name.plan" fits)
    if [ "$fits" != True ] && [ "${DRY:-0}" != 1 ]; then
        say "== $name: left out, expar plan says it does not fit: $(plan_value "$out/$name.plan" memory_gib) GiB of" \
            "$(plan_value "$out/$name.plan" room_gib); $(plan_value "$out/$name.plan" advice)$(head -1 "$work/plan.err")"
        row model "$name" 0 gpus="$n_gpus" batch="$batch" backend="$backend" routing="$routing" fits=false predicted_gib="$(plan_value "$out/$name.plan" memory_gib)"
        return
    fi
    if [ "$routing" = natural ]; then options+=("${natural[@]}"); else options+=("${forced[@]}"); fi
    train "$name" 80 "$n_gpus" 8 "${options[@]}"
    rc=$?
    row model "$name" $rc gpus="$n_gpus" ep="$n_gpus" batch="$batch" backend="$backend" routing="$routing" \
        predicted_gib="$(plan_value "$out/$name.plan" memory_gib)" predicted_tps="$(plan_value "$out/$name.plan" tokens_per_s_gpu)"
}
if want model; then
    model deepep natural 8
    model deepep natural 4
    model deepep forced 8
    model standard natural 8
    model deepep forced 4
    model standard natural 4
fi

# ---- scaling
slice() { # MODE GPUS EP ROWS-OF-A-STEP
    local mode=$1 n=$2 ep=$3 rows_of_step=$4 name=slice_$1_$2_ep$3 options=()
    options=(--job.config_file configs/rank_slice_30b_a3b.toml --model.n_layers "${LAYERS:-8}" --model.flavor 30B-A3B-deepep
        --moe.num_experts $((16 * ep)))
    [ $small = 1 ] && options=("${tiny[@]}" --parallelism.expert_parallel_comm_backend deepep)
    train "$name" 40 "$n" 7 "${options[@]}" "${natural[@]}" --parallelism.expert_parallel_degree "$ep" --training.local_batch_size 4 \
        --training.global_batch_size "$rows_of_step"
    row scaling "$name" $? gpus="$n" ep="$ep" mode="$mode" global_batch="$rows_of_step"
}
if want scaling; then
    for mode in weak strong; do
        for ((n = n_gpus; n >= 1; n /= 2)); do
            # with all GPUs the two modes are the same run
            [ $mode = strong ] && [ "$n" = "$n_gpus" ] && continue
            all=$([ $mode = weak ] && echo $((4 * n)) || echo $((4 * n_gpus)))
            slice $mode "$n" "$n" "$all"
            [ "$n" = 1 ] || slice $mode "$n" 1 "$all"
        done
    done
fi

# ---- the exchange
if want exchange; then
    lists=("16384 2048 --sms 16,24,0" "4096 2048 --sms 16,0")
    [ $small = 1 ] && lists=("64 32 --sms 0")
    for list in "${lists[@]}"; do
        read -r t d sms <<< "$list"
        # shellcheck disable=SC2086
        NGPU=$n_gpus go "exchange_$t" 50 "$build/bin/expar" bench ep --device $device --job.ranks processes --ranks "$n_gpus" --tokens "$t" --dim "$d" $sms \
            --experts $((16 * n_gpus)) --top-k 8 --routing random,spread --backward --seconds "${EP_SECONDS:-0.3}" --json
        rc=$?
        [ "${DRY:-0}" = 1 ] || python3 - "$rows" "$out/exchange_$t.txt" $rc << 'PY'
import json, sys
text = open(sys.argv[2]).read()
try:
    found = json.loads(text[text.index("["):text.rindex("]") + 1])
except ValueError:
    found = [{"error": text[-300:]}]
with open(sys.argv[1], "a") as rows:
    for r in found:
        rows.write(json.dumps({"part": "exchange", "exit": int(sys.argv[3]), **r}) + "\n")
PY
    done
fi

# ---- starts, failures: gpu_ranks.sh, whose last lines count
counted() { # PART SECONDS VARIABLES...
    local part=$1 limit=$2 rc count
    shift 2
    go "$part" "$limit" env PARTS="$part" GPUS="$n_gpus" FAULT_DEVICE=$device "$@" bash bench/gpu_ranks.sh "$build" "$out/$part"
    rc=$?
    [ "${DRY:-0}" = 1 ] && return
    count=$(grep -E "^$part: [0-9]+ of [0-9]+" "$out/$part.txt" | tail -1)
    say "${count:-$part: not counted to the end}"
    row "$part" "$part" $rc gpus="$n_gpus" count="${count#*: }"
}
if want starts; then
    settings=""
    [ $small = 1 ] && settings="${tiny[*]} --parallelism.expert_parallel_comm_backend deepep --training.dtype float32 ${gpu[*]}"
    counted starts 200 STARTS="${STARTS:-20}" EXPERTS="$([ $small = 1 ] && echo 8 || echo $((16 * n_gpus)))" START_OPTIONS="$settings"
fi
want faults && counted faults 60 HOWS="${HOWS:-kill}" PHASES="dispatch combine" REPEATS="${REPEATS:-3}"

# ---- another EP degree
if want resume; then
    saving=("${tiny[@]}" "${natural[@]}" --training.local_batch_size 2 --training.global_batch_size $((2 * n_gpus)) --checkpoint.enable --checkpoint.interval 4)
    half=$((n_gpus > 1 ? n_gpus / 2 : 1))
    train saved 40 "$n_gpus" 4 "${saving[@]}" --parallelism.expert_parallel_degree "$n_gpus"
    rc=$?
    [ -d "$work/saved/checkpoint" ] && cp -r "$work/saved" "$work/resumed"
    row resume saved $rc gpus="$n_gpus" ep="$n_gpus"
    train saved 40 "$n_gpus" 8 "${saving[@]}" --parallelism.expert_parallel_degree "$n_gpus"
    row resume saved $? gpus="$n_gpus" ep="$n_gpus"
    train resumed 40 "$n_gpus" 8 "${saving[@]}" --parallelism.expert_parallel_degree $half
    row resume resumed $? gpus="$n_gpus" ep=$half
    [ "${DRY:-0}" = 1 ] || python3 - "$rows" << 'PY' > "$out/resume.txt" || failed=1
import json, sys
runs = [json.loads(line) for line in open(sys.argv[1])]
losses = [r.get("losses", {}) for r in runs if r["part"] == "resume"]
gap = [abs(a / b - 1) for k in map(str, range(5, 9)) if (a := losses[-1].get(k)) and (b := losses[-2].get(k))]
right = len(gap) == 4 and max(gap) < 1e-3
print(f"resume: losses of steps 5 to 8 are {max(gap):.1e} apart, allowed 1e-3" if right else f"FAILED: resume: gaps {gap}")
sys.exit(not right)
PY
    [ "${DRY:-0}" = 1 ] || tee -a "$summary" < "$out/resume.txt"
fi

# ---- tests
if want tests; then
    mpi=(mpirun --enable-recovery --bind-to none --oversubscribe -n "$n_gpus")
    go test_ep 60 "${mpi[@]}" "$build/bin/test_ep" --mpi --device $device --gpus "$n_gpus" --quick
    row tests test_ep $? gpus="$n_gpus"
    go test_comm_device 60 "${mpi[@]}" "$build/bin/test_comm_device" --mpi --device $device
    row tests test_comm_device $? gpus="$n_gpus"
fi
[ "${DRY:-0}" = 1 ] && exit 0

# ---- the table
left=$(ps -eo pid=,args= | grep -F "$build/bin/" | grep -v grep | head -3)
[ -z "$left" ] || fail "processes are left: $left"
python3 - "$rows" "$out/scaling.json" << 'PY' > "$out/table.md"
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
json.dump(rows, open(sys.argv[2], "w"), indent=1)
def table(title, heads, lines):
    if lines:
        print(f"\n### {title}\n\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
        for line in lines:
            print("| " + " | ".join(line) + " |")
def number(row, key, form="{:,.0f}"):
    return form.format(row[key]) if isinstance(row.get(key), (int, float)) else "-"
def result(row, *cells):
    if "tps" in row and row["exit"] == 0:
        return list(cells)
    return ["does not fit" if row.get("fits") is False else row.get("error", f"exit {row['exit']}")] + [""] * (len(cells) - 1)
part = lambda name: [r for r in rows if r["part"] == name]
table("Whole model", ["GPUs", "backend", "routing", "rows a GPU", "tok/s a GPU", "step s", "GiB", "planned GiB", "planned tok/s"],
      [[str(r["gpus"]), r["backend"], r["routing"], str(r["batch"])]
       + result(r, number(r, "tps"), number(r, "time_s", "{:.3f}"), number(r, "memory_gib", "{:.1f}"))
       + [number(r, "predicted_gib", "{:.1f}"), number(r, "predicted_tps")] for r in part("model")])
scaling = part("scaling")
rate = {(r["mode"], r["gpus"], r["ep"]): r["tps"] for r in scaling if r["exit"] == 0 and "tps" in r}
def against(value, base):
    return f"{100 * value / base:.1f} %" if value and base else "-"
for mode, n, ep in list(rate):
    if mode == "weak" and n == max(r["gpus"] for r in scaling):
        rate["strong", n, ep] = rate[mode, n, ep]
table("Scaling, 4 x 4096 a pass, natural routing; on all GPUs weak and strong are the same run", ["mode", "GPUs", "EP", "rows a step", "tok/s a GPU", "step s", "of one GPU", "of EP 1"],
      [[r["mode"], str(r["gpus"]), str(r["ep"]), str(r["global_batch"])]
       + result(r, number(r, "tps"), number(r, "time_s", "{:.3f}"), against(r.get("tps"), rate.get((r["mode"], 1, 1))),
                against(r.get("tps"), rate.get((r["mode"], r["gpus"], 1)))) for r in scaling])
ops = ("dispatch", "combine", "combine_backward", "dispatch_backward")
table("Exchange: us, and share of the link", ["ranks", "T", "D", "SMs", "routing", "transport", "MB", "link GB/s (one way)"] + list(ops),
      [[str(r.get(k, "-")) for k in ("ranks", "tokens", "dim", "sms", "routing", "transport")] +
       ([r["error"][:120]] if "error" in r else
        [number({"x": r.get("link_bytes", 0) / 1e6}, "x", "{:.1f}"),
         f"{r.get('link_bytes_per_s', 0) / 1e9:.0f} ({r.get('link_one_way_bytes_per_s', 0) / 1e9:.0f})"]
        + [f"{1e6 * r[o + '_s']:.0f}, {100 * r.get(o + '_share_of_link', 0):.0f} %" for o in ops]) for r in part("exchange")])
table("Starts, failures, tests", ["what", "GPUs", "result"],
      [[r["name"], str(r["gpus"]), r.get("count") or ("right" if r["exit"] == 0 else r.get("error", f"exit {r['exit']}"))]
       for r in part("starts") + part("faults") + part("tests") + part("resume")])
PY
cat "$out/table.md"
say "whole: $SECONDS s; $([ $failed = 0 ] && echo "all right" || echo FAILED); output in $out"
exit $failed
