#!/bin/bash
# expar tune and expar doctor on GPUs: what is found, whether a run takes it, and whether the run is faster for it.
#   bench/gpu_tune.sh BUILD_FOLDER [OUTPUT_FOLDER]
# BUILD_FOLDER may come from another machine (cmake --preset cuda -DXP_BUNDLE_DEPS=ON): only bin/ and lib/ are used.
# PARTS="doctor one shared all" chooses:
#   doctor  expar doctor as text and as JSON: each GPU computes; with several GPUs also the copies between them, a sum and the expert exchange
#   one     one GPU, one rank: nothing is dispatched, every GEMM shape is timed, and steps in turns; a run with the file, and the same bits again
#   shared  two rank threads on one GPU: no GEMM is timed
#   all     every GPU of the machine, a process each: tune, a run that takes the file, the same run with the defaults in turns (PAIRS, 3),
#           the same bits of each again and of the file's [deepep] alone, and a run that the file does not fit
# LAYERS (4) of the rank slice of Qwen3-30B-A3B, 16 experts a rank. SECONDS_TUNE (25) for dispatch and combine: with opening the GPUs
# and the GEMMs about 45 s. Exit code 0: every part did what it says.
set -u
build=${1:?usage: gpu_tune.sh BUILD_FOLDER [OUTPUT_FOLDER]}
out=${2:-$(mktemp -d)}
parts=${PARTS:-doctor one shared all}
mkdir -p "$out"
build=$(cd "$build" && pwd)
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 2
summary=$out/tune_summary.txt
: > "$summary"
. bench/gpu_common.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
n_gpus=${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)}
seconds=${SECONDS_TUNE:-25}
expar=$build/bin/expar

python3 - "$work/tokens.bin" << 'PY'
import array, random, sys
random.seed(1)
array.array("I", (random.randrange(2048) for _ in range(400000))).tofile(open(sys.argv[1], "wb"))
PY
sed "s|^dataset = .*|dataset = \"tokens\"|; s|^dataset_path = .*|dataset_path = \"$work/tokens.bin\"|; s|^flavor = .*|flavor = \"30B-A3B-deepep\"\nn_layers = ${LAYERS:-4}|; /^hf_assets_path/d; /^num_experts/d" \
    configs/rank_slice_30b_a3b.toml > "$work/slice.toml"
# of RANKS: the settings of a model with 16 experts on each
of() { echo --parallelism.expert_parallel_degree "$1" --moe.num_experts $((16 * $1)); }
tuned=$work/slice.tuned.toml

if want doctor; then
    run doctor 60 "$expar" doctor && grep -E ' (no|NO) ' "$out/doctor.txt" | tee -a "$summary"
    run doctor_json 60 "$expar" doctor --json
    python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); sys.exit(not d["can_train"])' "$out/doctor_json.txt" || fail "doctor: this machine cannot train"
    grep -E '(GPUs?\)|processes)' "$out/doctor.txt" | tee -a "$summary"
    [ "$(grep -cE 'yes +(ops|attention) \(GPU\)' "$out/doctor.txt")" = 2 ] || fail "doctor: a GPU does not compute what it should"
    [ "$n_gpus" -lt 2 ] || [ "$(grep -cE 'yes +(all-reduce|expert exchange) \(GPUs\)' "$out/doctor.txt")" = 2 ] || fail "doctor: the GPUs do not reach each other"
fi
# tune NAME RANKS OPTIONS: tune, then a run that takes the file
tune() {
    local name=$1 ranks=$2
    shift 2
    # shellcheck disable=SC2046
    NGPU=$ranks run "tune_$name" 150 "$expar" tune "$work/slice.toml" $(of "$ranks") --seconds "$seconds" --gemms "$@" || return
    grep -E '^(deepep|parallelism|moe|won|kept|to consider)' "$out/tune_$name.txt" | tee -a "$summary"
    cp "$tuned" "$out/$name.tuned.toml"
    train "${name}_tuned" "$ranks" "$@" || return
    if [ "$ranks" -gt 1 ] || grep -q '^\[gemm\]' "$tuned"; then
        grep -q "tuned: .*fits" "$out/${name}_tuned.txt" || fail "$name: the run does not take the file"
    fi
}
# train NAME RANKS OPTIONS: 12 steps; the mean of the last 8 on a line
train() {
    local name=$1 ranks=$2
    shift 2
    rm -rf "$work/run"
    # shellcheck disable=SC2046
    NGPU=$ranks run "$name" 120 "$expar" train "$work/slice.toml" $(of "$ranks") --training.steps 12 --job.dump_folder "$work/run" "$@" || return
    cp "$work/run/metrics.jsonl" "$out/$name.jsonl"
    python3 - "$out/$name.jsonl" << 'PY' | tee -a "$summary"
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
times = sorted(r["time_s"] for r in rows[4:])
print(f"   step {1e3 * times[len(times) // 2]:.1f} ms (median of {len(times)}), loss {rows[-1]['loss']!r}")
PY
}
same_bits() { # of two runs: loss and norm of every step
    python3 - "$out/$1.jsonl" "$out/$2.jsonl" << 'PY' || fail "$1 and $2 differ"
import json, sys
a, b = ([(r["loss"], r["grad_norm"]) for r in map(json.loads, open(f))] for f in sys.argv[1:])
sys.exit(a != b)
PY
}
# timed_gemms NAME: tune has told of the GEMM shapes of a step and compared steps; the file names the shapes for which another algorithm won
# where steps are faster with them, and none otherwise
timed_gemms() {
    local told chosen
    told=$(grep -cE '^[0-9]+x[0-9]+x[0-9]+:' "$out/tune_$1.txt")
    chosen=$(grep -cE '^[0-9]+x[0-9]+x[0-9]+:.*:[1-9][0-9]* ' "$out/tune_$1.txt")
    grep '^GEMMs' "$out/tune_$1.txt" | sed 's/^/   /' | tee -a "$summary"
    [ "$told" -ge 10 ] || fail "$1: $told GEMM shapes were timed"
    [ "$chosen" = 0 ] || grep -q '^GEMMs together: a training step takes' "$out/tune_$1.txt" || fail "$1: no step was measured with the $chosen algorithms that won"
    grep -q '^GEMMs: won' "$out/tune_$1.txt" || chosen=0
    [ "$chosen" = "$(grep -cE '^ +"[0-9]+x' "$out/$1.tuned.toml")" ] || fail "$1: the file does not hold the $chosen algorithms that won"
}
if want one; then
    tune one 1
    grep -q 'no row is dispatched' "$out/tune_one.txt" || fail "one rank: settings of dispatch were chosen"
    timed_gemms one
    train one_again 1 && same_bits one_tuned one_again
    train one_default 1 --deepep.tuned_file none
fi
if want shared; then
    CUDA_VISIBLE_DEVICES=0 tune shared 2 --training.local_batch_size 1
    grep -q 'GEMMs: not timed' "$out/tune_shared.txt" || fail "shared: GEMMs were timed beside each other"
    CUDA_VISIBLE_DEVICES=0 train shared_default 2 --training.local_batch_size 1 --deepep.tuned_file none && same_bits shared_tuned shared_default
fi
if want all && [ "$n_gpus" -gt 1 ]; then
    tune all "$n_gpus"
    timed_gemms all
    for ((i = 1; i <= ${PAIRS:-3}; i++)); do
        train "all_default_$i" "$n_gpus" --deepep.tuned_file none
        train "all_tuned_$i" "$n_gpus"
        same_bits all_default_1 "all_default_$i"
        same_bits all_tuned_1 "all_tuned_$i"
    done
    # another algorithm of a GEMM may round differently; what tune chose for dispatch and combine has the same bits
    sed '/^# Dense GEMMs/,$d' "$tuned" > "$work/dispatch.toml"
    train all_dispatch "$n_gpus" --deepep.tuned_file "$work/dispatch.toml"
    same_bits all_default_1 all_dispatch
    # whatever tune chose, every choice there is has the same bits
    for setting in "transport a2a" "num_sms 16" "num_sms 132"; do
        train "all_${setting// /_}" "$n_gpus" --deepep.tuned_file none "--deepep.${setting% *}" "${setting#* }"
        same_bits all_default_1 "all_${setting// /_}"
    done
    train all_elsewhere "$n_gpus" --training.local_batch_size 2
    grep -q 'was measured for .*the defaults are used' "$out/all_elsewhere.txt" || fail "a file that does not fit is used"
fi
[ $failed = 0 ] && say "all parts did what they say"
exit $failed
