#!/usr/bin/env bash
# `expar eval` and `expar generate` on a GPU: one command on a machine that has one.
#
# usage: tests/full/inference.sh [BUILD]        (a CUDA build folder; default build/cuda)
#
# Checks: the op against the plain CPU code; loss (1e-5) and logits (1e-3) of the recorded models in fp32 against transformers, bf16
# no farther than PyTorch's own bf16; greedy text of 5 prompts, 100 tokens, the same as the CPU's in fp32; the commands
# themselves, CPU against GPU. Measures: tokens a second of 10B-A1B with random weights in bf16, one sequence.
# Prints "N passed, M failed"; exit code 1 when something failed.
set -u
cd "$(dirname "$0")/../.." || exit 2
bin=${1:-build/cuda}/bin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0
failed=0
check() { # NAME COMMAND...
    local name=$1
    shift
    if "$@" > "$work/log" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $name"
    else
        failed=$((failed + 1))
        echo "FAILED  $name"
        tail -n 15 "$work/log" | sed 's/^/        /'
    fi
}
loss_of() { # DEVICE DTYPE FOLDER
    "$bin/expar" eval --hf "$3" --tokens "$work/ids.bin" --seq 15 --rows 8 --device "$1" --dtype "$2" --json 2>> "$work/err" |
        sed -n 's/.*"loss": \([0-9.eE+-]*\).*/\1/p'
}
same_loss() { # A B TOLERANCE
    echo "CPU $1, GPU $2"
    awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(a > 0 && b > 0 && d <= t * a) }'
}

[ -x "$bin/expar" ] || { echo "no $bin/expar: give the folder of a CUDA build"; exit 2; }
"$bin/expar" doctor 2>&1 | grep -i 'gpu\|cuda' | head -n 5

check "op attention_decode against the plain code" "$bin/checkop" --op attention_decode --device cuda
check "recorded models, fp32 and bf16, greedy text" "$bin/test_inference" --device cuda --fixtures tests/parity/hf/fixtures
grep -h 'bf16 loss' "$work/log"
check "recorded models, training passes" "$bin/test_hf_parity" --device cuda --fixtures tests/parity/hf/fixtures

python3 -c "
import struct, sys
sys.stdout.buffer.write(b''.join(struct.pack('<I', (i * 37 + i // 11) % 61) for i in range(4096)))" > "$work/ids.bin"
for model in moe_gqa moe_odd moe_nonorm_tied dense_gqa dense_odd; do
    folder=tests/parity/hf/fixtures/$model
    cpu=$(loss_of cpu float32 "$folder")
    check "expar eval $model, fp32" same_loss "${cpu:-0}" "$(loss_of cuda float32 "$folder")" 1e-5
    check "expar eval $model, bf16" same_loss "${cpu:-0}" "$(loss_of cuda bfloat16 "$folder")" 1e-2
done

# ---- text, through the commands: a model trained for a moment, so that there is a tokenizer
printf 'the quick brown fox jumps over the lazy dog %d times\n' $(seq 2000) > "$work/text.txt"
check "a tokenizer" "$bin/expar" tokenizer-train "$work/text.txt" --vocab 400 --out "$work/tok"
check "a small run" "$bin/expar" train --model.flavor tiny_moe --model.vocab_size 512 --model.hf_assets_path "$work/tok" \
    --training.dataset_path "$work/text.txt" --training.seq_len 64 --training.steps 30 --training.backend cpu \
    --lr_scheduler.warmup_steps 5 --checkpoint.enable --job.dump_folder "$work/run"
for prompt in "the quick" "brown fox" "dog 17" "over the lazy" "t"; do
    for device in cpu cuda; do
        "$bin/expar" generate --checkpoint "$work/run" --prompt "$prompt" --greedy --max-tokens 100 --device $device \
            --dtype float32 > "$work/$device.txt" 2> "$work/$device.err" || cat "$work/$device.err"
    done
    check "greedy text after \"$prompt\"" cmp "$work/cpu.txt" "$work/cuda.txt"
done
for seed in 1 2; do
    for time in 1 2; do
        "$bin/expar" generate --checkpoint "$work/run" --prompt "the" --seed $seed --max-tokens 60 --device cuda > "$work/$time.txt"
    done
    check "the same text for seed $seed again, bf16" cmp "$work/1.txt" "$work/2.txt"
done

# ---- experts shared by two GPUs
if [ "$("$bin/expar" doctor --no-mpirun --json 2> /dev/null | sed -n 's/.*"n_gpus": \([0-9]*\).*/\1/p')" -ge 2 ]; then # CUDA_VISIBLE_DEVICES counts
    cpu=$(loss_of cpu float32 tests/parity/hf/fixtures/moe_gqa)
    two=$("$bin/expar" eval --hf tests/parity/hf/fixtures/moe_gqa --tokens "$work/ids.bin" --seq 15 --rows 8 --device cuda --dtype float32 \
        --ranks 2 --json 2>> "$work/err" | sed -n 's/.*"loss": \([0-9.eE+-]*\).*/\1/p')
    check "expar eval on two GPUs, fp32" same_loss "${cpu:-0}" "${two:-0}" 1e-5
    for ranks in 1 2; do
        "$bin/expar" generate --checkpoint "$work/run" --prompt "the quick" --greedy --max-tokens 100 --device cuda --dtype float32 \
            --ranks $ranks > "$work/$ranks.txt" 2>> "$work/err"
    done
    check "greedy text on two GPUs" cmp "$work/1.txt" "$work/2.txt"
fi

# ---- speed
check "10B-A1B, one sequence, bf16" "$bin/expar" bench decode --flavor 10B-A1B --device cuda --prompt-tokens 128 --tokens 100
cat "$work/log"
check "the same with 2048 tokens in the cache" "$bin/expar" bench decode --flavor 10B-A1B --device cuda --prompt-tokens 2048 --tokens 100
cat "$work/log"

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
