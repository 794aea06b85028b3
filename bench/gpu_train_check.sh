#!/bin/bash
# Check training on a GPU: parity with transformers, CPU against GPU, the same bits twice, resuming, expert parallelism
# over rank threads, the rank slice.
#   bench/gpu_train_check.sh BUILD_FOLDER [OUTPUT_FOLDER]
# BUILD_FOLDER may come from another machine (cmake --preset cuda -DXP_BUNDLE_DEPS=ON): only bin/ and lib/ are used.
# Whole output goes to OUTPUT_FOLDER (default: a new temporary one); a summary is printed last. At most six minutes.
# PARITY_DEVICE=cpu GPU_OPTIONS="--training.backend cpu --debug.device_caps test_protect" tries the script itself on a machine
# without a GPU.
# PARTS="parity curves repeat resume ranks slice" chooses; exit code 0: everything that ran was right. "record" before "parity"
# records PyTorch's bf16 anew (make_bf16.py, needs transformers), uses it, and leaves it in OUTPUT_FOLDER/bf16.
set -u
build=${1:?usage: gpu_train_check.sh BUILD_FOLDER [OUTPUT_FOLDER]}
out=${2:-$(mktemp -d)}
parts=${PARTS:-parity curves repeat resume ranks slice}
read -r -a gpu <<< "${GPU_OPTIONS:---training.backend cuda}"
mkdir -p "$out"
build=$(cd "$build" && pwd)
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
summary=$out/train_summary.txt
: > "$summary"
. bench/gpu_common.sh

# 1 in 256 token ids as little-endian uint32: squares modulo a prime, so that there is something to learn.
tokens=$work/tokens.bin
python3 - "$tokens" "${TOKENS:-4000000}" << 'EOF'
import array, sys
x, n = 1, int(sys.argv[2])
ids = array.array("I", bytes(4 * n))
for i in range(n):
    x = (x * 48271) % 2147483647
    ids[i] = (ids[i - 1] * 5 + 1 + (x % 7 == 0) * x) % 2048 if i else 7
ids.tofile(open(sys.argv[1], "wb"))
EOF

# train NAME SECONDS OPTIONS...: a run of its own folder, work/NAME; over $ranks ranks
ranks=1
train() {
    local name=$1 limit=$2
    shift 2
    NGPU=$ranks run "$name" "$limit" "$build/bin/expar" train --training.dataset tokens --training.dataset_path "$tokens" \
        --job.dump_folder "$work/$name" --metrics.log_freq 1 "$@"
}
tiny=(--model.flavor tiny_moe --training.seq_len 256 --training.local_batch_size 8 --lr_scheduler.warmup_steps 5)

# value NAME STEP KEY: of metrics.jsonl
value() {
    sed -n "$2p" "$work/$1/metrics.jsonl" 2> /dev/null | grep -o "\"$3\": [^,}]*" | cut -d' ' -f2
}

# weights NAME: a sum over the tensors of its last checkpoint; nothing when there is none
weights() {
    [ -e "$work/$1/checkpoint/step-20/manifest.json" ] && cat "$work/$1"/checkpoint/step-20/*.safetensors | md5sum
}

fixtures=tests/parity/hf/fixtures
if want record; then
    if run record 120 python3 tests/parity/hf/make_bf16.py "$fixtures" --out "$out/bf16"; then
        grep "training" "$out/record.txt" | cut -c1-300 | tee -a "$summary"
        cp -r "$fixtures" "$work/fixtures" && cp -r "$out"/bf16/. "$work/fixtures/" && fixtures=$work/fixtures
    fi
fi
if want parity; then
    run parity 90 "$build/bin/test_hf_parity" --device "${PARITY_DEVICE:-cuda}" --fixtures "$fixtures"
    grep -E "PASSED|FAILED|ERROR|bf16:" "$out/parity.txt" | cut -c1-200 | tee -a "$summary"
fi
if want curves; then
    train cpu 60 "${tiny[@]}" --training.backend cpu --training.steps 50
    train cuda_fp32 40 "${tiny[@]}" "${gpu[@]}" --training.dtype float32 --training.steps 50
    train cuda_bf16 40 "${tiny[@]}" "${gpu[@]}" --training.dtype bfloat16 --training.steps 50
    say "loss: step, cpu fp32, cuda fp32, cuda bf16; grad_norm of the first two"
    for step in 1 2 5 10 20 30 40 50; do
        say "$(printf '%4d' $step) $(value cpu $step loss) $(value cuda_fp32 $step loss) $(value cuda_bf16 $step loss)" \
            "$(value cpu $step grad_norm) $(value cuda_fp32 $step grad_norm)"
    done
    python3 -c 'import sys; a, b = map(float, sys.argv[1:]); sys.exit(not abs(a - b) <= 1e-5 * a)' \
        "$(value cpu 1 loss)" "$(value cuda_fp32 1 loss)" || { failed=1; say "FAILED: the first losses differ"; }
fi
if want repeat || want resume; then
    saving=("${gpu[@]}" --training.steps 20 --checkpoint.enable --checkpoint.interval 10)
    train once 40 "${tiny[@]}" "${saving[@]}"
    once=$(weights once)
fi
if want repeat; then
    train twice 40 "${tiny[@]}" "${saving[@]}"
    [ -n "$once" ] && [ "$once" = "$(weights twice)" ] && say "repeat: the same bits" ||
        { failed=1; say "FAILED: repeat gives other bits"; }
fi
if want resume; then
    train again 40 "${tiny[@]}" "${saving[@]}"
    rm -rf "$work/again/checkpoint/step-20"
    train again 40 "${tiny[@]}" "${saving[@]}"
    grep -m1 resume "$out/again.txt" | cut -c1-160 | tee -a "$summary"
    [ -n "$once" ] && [ "$once" = "$(weights again)" ] && say "resume: the same bits" ||
        { failed=1; say "FAILED: resuming gives other bits"; }
fi
# The same 16 rows a step over 1, 2, 4 and 8 rank threads; then both transports.
if want ranks; then
    spread=(--model.flavor tiny_moe --training.seq_len 256 --lr_scheduler.warmup_steps 5 "${gpu[@]}")
    for dtype in float32 bfloat16; do
        losses=()
        for ranks in 1 2 4 8; do
            train "ep${ranks}_$dtype" 40 "${spread[@]}" --training.dtype $dtype --training.steps 3 \
                --training.local_batch_size $((16 / ranks)) --parallelism.expert_parallel_degree $ranks \
                --parallelism.expert_parallel_comm_backend deepep
            losses+=("$(value "ep${ranks}_$dtype" 1 loss)")
        done
        say "$dtype, loss of step 1 at EP 1, 2, 4, 8: ${losses[*]}"
        python3 -c '
import sys
bound, losses = float(sys.argv[1]), [float(x) for x in sys.argv[2:]]
gap = max(abs(x / losses[0] - 1) for x in losses)
print(f"furthest apart: {gap:.2e}, allowed {bound:g}")
sys.exit(not (len(losses) == 4 and gap <= bound))' "$([ $dtype = float32 ] && echo 1e-5 || echo 1e-3)" "${losses[@]}" |
            tee -a "$summary"
        [ "${PIPESTATUS[0]}" = 0 ] || fail "$dtype: the EP degrees differ"
    done
    ranks=4
    for backend in deepep standard; do
        train "by_$backend" 60 "${spread[@]}" --training.steps 20 --training.local_batch_size 4 --checkpoint.enable \
            --checkpoint.interval 20 --parallelism.expert_parallel_degree 4 \
            --parallelism.expert_parallel_comm_backend $backend
        grep -o '^{"step": [0-9]*, "loss": [^,]*, "grad_norm": [^,]*' "$work/by_$backend/metrics.jsonl" \
            > "$out/by_$backend.figures"
    done
    ranks=1
    same=$([ "$(wc -l < "$out/by_deepep.figures")" = 20 ] && [ -e "$work/by_deepep/checkpoint/step-20" ] && echo yes)
    for file in "$work"/by_deepep/checkpoint/step-20/*.safetensors; do
        cmp "$file" "$work/by_standard/checkpoint/step-20/${file##*/}" || same=no
    done
    [ $same = yes ] && cmp "$out/by_deepep.figures" "$out/by_standard.figures" &&
        say "deepep and standard: the same bits, 20 steps over 4 ranks" || fail "deepep and standard give other bits"
fi
if want slice; then
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -l 1 > "$out/memory_used.txt" 2> /dev/null &
    watch=$!
    start=$(date +%s)
    train slice 150 --job.config_file configs/rank_slice_30b_a3b.toml "${gpu[@]}" \
        --training.steps "${SLICE_STEPS:-6}" --checkpoint.no_enable
    say "slice: $(($(date +%s) - start)) s from start to end"
    kill $watch 2> /dev/null
    say "memory used at most: $(sort -n "$out/memory_used.txt" | tail -1) MiB by nvidia-smi (the context included)"
    grep -E "memory:|step:" "$out/slice.txt" | cut -c1-260 | tee -a "$summary"
    for step in 1 2 "${SLICE_STEPS:-6}"; do
        say "step $step: time_s $(value slice $step time_s) tps $(value slice $step tps) waits" \
            "$(value slice $step n_host_syncs) allocations $(value slice $step n_allocs)"
    done
fi
say "whole: $SECONDS s; $([ $failed = 0 ] && echo "all right" || echo FAILED); output in $out"
echo
cat "$summary"
exit $failed
