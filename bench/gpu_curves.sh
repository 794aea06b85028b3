#!/bin/bash
# Loss curves of the debug model on real text, expar and PyTorch, fp32 and bf16, from the same weights on the same rows;
# the same bits when repeated and after stopping; what the deterministic attention backward costs.
#   bench/gpu_curves.sh BUILD_FOLDER [OUTPUT_FOLDER]
# The text, once, where expar runs (TOKENS names another file; 4.4 MB):
#   scripts/prepare_text.sh BUILD_FOLDER/bin/expar
#   mkdir -p assets/tokens && BUILD_FOLDER/bin/expar tokenize --tokenizer assets/tokenizer --out assets/tokens/kjv.bin \
#       assets/text/kjv_train.jsonl
# BUILD_FOLDER may come from another machine (cmake --preset cuda -DXP_BUNDLE_DEPS=ON): only bin/ and lib/ are used.
# PARTS="curves peer repeat resume cost" chooses; summary in OUTPUT_FOLDER/curves_summary.txt as it grows; about five
# minutes and 16 GB of temporary files. Exit code 0: everything that ran was right.
# Smaller, without a GPU: FLAVOR=tiny_moe SEQ=64 BATCH=2 STEPS=12 WARMUP=3 GPU_OPTIONS="--training.backend cpu --debug.device_caps
# guard" PEER_DEVICE=cpu PARTS="curves peer repeat resume"
set -u
build=${1:?usage: gpu_curves.sh BUILD_FOLDER [OUTPUT_FOLDER]}
out=${2:-$(mktemp -d)}
parts=${PARTS:-curves peer repeat resume cost}
read -r -a gpu <<< "${GPU_OPTIONS:---training.backend cuda}"
mkdir -p "$out"
build=$(cd "$build" && pwd)
out=$(cd "$out" && pwd)
summary=$out/curves_summary.txt
: > "$summary"
cd "$(dirname "$0")/.." || exit 2
. bench/gpu_common.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tokens=${TOKENS:-assets/tokens/kjv.bin}
[ -s "$tokens" ] || { echo "error: there is no $tokens; the head of this script says how to make it" >&2; exit 2; }
steps=${STEPS:-200} half=$((${STEPS:-200} / 2)) warmup=${WARMUP:-20}
seq=${SEQ:-512} batch=${BATCH:-8} lr=${LR:-3e-4} flavor=${FLAVOR:-debugmodel_moe}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null | tee -a "$summary"

# train NAME SECONDS OPTIONS...: a run of its own folder, work/NAME
train() {
    local name=$1 limit=$2
    shift 2
    NGPU=1 run "$name" "$limit" "$build/bin/expar" train --training.dataset tokens --training.dataset_path "$tokens" \
        --job.dump_folder "$work/$name" --metrics.log_freq 20 "${gpu[@]}" "$@"
    local rc=$?
    cp "$work/$name/metrics.jsonl" "$out/$name.jsonl" 2> /dev/null
    return $rc
}
# Balancing off: the peer has none. The rate stays at its peak, which min_lr_factor 1 says.
model=(--model.flavor "$flavor" --training.seq_len "$seq" --training.local_batch_size "$batch" --debug.seed 42
    --moe.load_balance_coeff 0 --optimizer.lr "$lr" --lr_scheduler.warmup_steps "$warmup" --lr_scheduler.min_lr_factor 1
    --lr_scheduler.total_steps "$steps")
# Everyone starts from the same weights, rounded to bf16 so that no run has to round them.
weights=$work/init/hf-step-1
from=("${model[@]}" --checkpoint.initial_load_path "$weights" --checkpoint.initial_load_in_hf)
saving=(--checkpoint.enable --checkpoint.interval "$half" --training.dtype bfloat16 --training.steps "$steps")
if ! train init 90 "${model[@]}" --training.dtype float32 --training.steps 1 --optimizer.lr 0 --checkpoint.enable \
    --checkpoint.last_save_in_hf --checkpoint.last_save_model_only --checkpoint.export_dtype bfloat16; then
    exit 1
fi
rm -rf "$work/init/checkpoint"

if want curves; then
    train fp32 120 "${from[@]}" --training.dtype float32 --training.steps "$steps"
    train bf16 60 "${from[@]}" --training.dtype bfloat16 --training.steps "$steps"
fi
if want peer; then
    for dtype in float32 bfloat16; do
        run "peer_$dtype" 120 python3 bench/peer_train.py --weights "$weights" --tokens "$tokens" --seq-len "$seq" \
            --batch "$batch" --steps "$steps" --lr "$lr" --warmup "$warmup" --dtype "$dtype" \
            --out "$out/peer_$dtype.json" ${PEER_DEVICE:+--device "$PEER_DEVICE"}
    done
fi
if want curves && want peer; then
    run gaps 20 python3 bench/peer_gaps.py "$out/fp32.jsonl" "$out/bf16.jsonl" "$out/peer_float32.json" \
        "$out/peer_bfloat16.json"
    tee -a "$summary" < "$out/gaps.txt"
fi

# same A B: the files of the last checkpoints, and loss and gradient norm of every step
same() {
    local file n=0
    for file in "$work/$1/checkpoint/step-$steps"/*.safetensors; do
        cmp -s "$file" "$work/$2/checkpoint/step-$steps/${file##*/}" || return 1
        n=$((n + 1))
    done
    [ $n -gt 0 ] && cmp -s <(figures "$1") <(figures "$2") && [ "$(figures "$1" | wc -l)" = "$steps" ]
}
figures() { grep -o '^{"step": [0-9]*, "loss": [^,]*, "grad_norm": [^,]*' "$work/$1/metrics.jsonl"; }

if want repeat || want resume; then
    train once 90 "${from[@]}" "${saving[@]}"
    train again 90 "${from[@]}" "${saving[@]}"
fi
if want repeat; then
    same once again && say "repeat: the same bits in $steps steps and in the checkpoint" || fail "repeat gives other bits"
fi
if want resume; then
    rm -rf "$work/again/checkpoint/step-$steps"
    train again 90 "${from[@]}" "${saving[@]}"
    grep -m1 -i resum "$out/again.txt" | cut -c1-160 | tee -a "$summary"
    same once again && say "resume at step $half: the same bits at step $steps" || fail "resuming gives other bits"
fi
rm -rf "$work/once" "$work/again"

# median NAME: milliseconds of a step, without the first five
median() {
    grep -o '"time_s": [^,]*' "$work/$1/metrics.jsonl" 2> /dev/null | tail -n +6 | cut -d' ' -f2 | sort -g |
        awk '{t[NR] = $1} END {if (NR) printf "%.3f", 1e3 * t[int((NR + 1) / 2)]; else print "?"}'
}
# cost WHAT OPTIONS...: step times with the deterministic attention backward and without, in turns
cost() {
    local what=$1 turn
    shift
    for turn in 1 2; do
        train "${what}_fixed_$turn" 60 "$@" --training.steps 25 --debug.deterministic
        train "${what}_free_$turn" 60 "$@" --training.steps 25 --debug.no_deterministic
    done
    say "cost of the deterministic attention backward, $what, ms a step (two runs each): with it" \
        "$(median "${what}_fixed_1") $(median "${what}_fixed_2"), without $(median "${what}_free_1") $(median "${what}_free_2")"
}
if want cost; then
    cost debug "${from[@]}" --training.dtype bfloat16
    cost slice --job.config_file configs/rank_slice_30b_a3b.toml --model.n_layers "${SLICE_LAYERS:-8}"
fi
say "whole: $SECONDS s; $([ $failed = 0 ] && echo "all right" || echo FAILED); output in $out"
echo
cat "$summary"
exit $failed
