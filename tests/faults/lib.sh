# Helpers of the fault tests: sourced. XP_TEST_LONG=1 tries every call; otherwise about SAMPLES of them, others at each seed
# (XP_TEST_SEED).
. "$(dirname "${BASH_SOURCE[0]}")/../e2e/lib.sh"
LONG=${XP_TEST_LONG:-0}
SEED=${XP_TEST_SEED:-7}
if ldd "$EXPAR" | grep -qE 'lib[at]san'; then
    echo "SKIP: a sanitizer's run time must be loaded before the library that lets calls fail"
    exit 77
fi
for i in $(seq 120); do
    printf '{"text": "%d: the %d people went up to the city on day %d"}\n' "$i" $((i * i % 97)) $((i * 31 % 365))
done > text.jsonl
gzip -k text.jsonl
"$EXPAR" tokenizer-train text.jsonl --vocab 400 --out tok > tok.log 2>&1 || fail "tokenizer-train"
cat > run.toml <<TOML
[model]
flavor = "custom"
dim = 16
n_layers = 1
n_heads = 2
n_kv_heads = 1
head_dim = 8
vocab_size = 512
hf_assets_path = "$WORK/tok"
[moe]
num_experts = 4
top_k = 2
moe_dim = 8
[training]
dataset = "text"
dataset_path = "$WORK/text.jsonl.gz"
seq_len = 16
local_batch_size = 2
[lr_scheduler]
total_steps = 8
warmup_steps = 2
[checkpoint]
enable = true
interval = 2
keep_latest_k = 2
[metrics]
log_freq = 1
enable_tensorboard = true
TOML
run() { # RANKS DUMP MODE STEPS: output in out, exit code in rc
    NGPU=$1 timeout -k 5 60 "$EXPAR" train --job.config_file run.toml --job.dump_folder "$WORK/$2" --job.threads_per_rank 1 \
        --checkpoint.async_mode "$3" --training.steps "$4" > out 2>&1
    rc=$?
}
steps_of() { grep -o '^{"step": [0-9]*' "$1" 2> /dev/null | tr -dc '0-9\n' | tr '\n' ' '; }
kept() { ls "$1/checkpoint" 2> /dev/null | sed -n 's/^step-//p' | sort -n | tr '\n' ' '; }
# same RANKS A B STEP: the same state, byte for byte
same() {
    local r
    for ((r = 0; r < $1; r++)); do
        cmp -s "$2/checkpoint/step-$4/rank-0000$r.safetensors" "$3/checkpoint/step-$4/rank-0000$r.safetensors" || return 1
    done
}
# judge WHAT RANKS DUMP STEPS: a run that ended with rc, its output in out. Survived: the result is that of a run without the
# fault, every line included. Ended: one error, nothing lost, and the next start goes on to the same result.
judge() {
    local what=$1 ranks=$2 dump=$3 steps=$4 newest
    if [ $rc -eq 0 ]; then
        same $ranks $dump good $steps || { cat out; fail "$what: exit code 0 and another result"; }
        [ "$(steps_of $dump/metrics.jsonl)" = "$(seq $steps | tr '\n' ' ')" ] || grep -q '^warning: ' out ||
            { cat out; fail "$what: lines are missing without a word: $(steps_of $dump/metrics.jsonl)"; }
        grep -q '^warning: ' out && warned=$((warned + 1)) || survived=$((survived + 1))
        return
    fi
    [ $rc -le 2 ] && [ "$(grep -c '^error: .' out)" -ge 1 ] || { cat out; fail "$what: exit code $rc"; }
    ended=$((ended + 1))
    newest=$(kept $dump | awk '{print $NF}')
    run $ranks $dump disabled $steps
    [ $rc -eq 0 ] || { cat out; fail "$what: the next start fails"; }
    [ -z "$newest" ] || [ "$newest" = "$steps" ] || grep -q "^resume: .*step-$newest" out || { cat out; fail "$what: step-$newest is not resumed"; }
    same $ranks $dump good $steps || fail "$what: the next start has another result"
    [ "$(steps_of $dump/metrics.jsonl)" = "$(seq $steps | tr '\n' ' ')" ] || fail "$what: metrics after the next start: $(steps_of $dump/metrics.jsonl)"
}
# numbers N SAMPLES: which of N calls fail
numbers() {
    if [ "$LONG" != 0 ] || [ "$1" -le "$2" ]; then
        seq "$1"
    else
        awk -v n="$1" -v s="$2" -v seed="$SEED" 'BEGIN { srand(seed); for (i = 0; i < s; i++) print int((i + rand()) * n / s) + 1 }'
    fi
}
