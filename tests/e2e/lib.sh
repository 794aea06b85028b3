# Helpers of the end-to-end tests: sourced with EXPAR and MAKE_TOKENS set by ctest.
set -u
WORK=$(mktemp -d "${TMPDIR:-/tmp}/expar_e2e.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
cd "$WORK" || exit 1
unset NGPU CONFIG_FILE LOG_RANK
"$MAKE_TOKENS" tokens.bin 40000 512 || exit 1
cat > tiny.toml <<'TOML'
[model]
flavor = "custom"
dim = 32
n_layers = 2
n_heads = 2
n_kv_heads = 1
head_dim = 16
vocab_size = 512
[moe]
num_experts = 8
top_k = 2
moe_dim = 24
[training]
dataset = "tokens"
dataset_path = "tokens.bin"
seq_len = 32
local_batch_size = 2
steps = 20
[optimizer]
lr = 3e-3
[lr_scheduler]
warmup_steps = 4
[checkpoint]
enable = true
interval = 10
TOML

# train RANKS DUMP_FOLDER [OPTIONS]: output in DUMP_FOLDER.log, exit code in $rc
train() {
    local ranks=$1 dump=$2
    shift 2
    NGPU=$ranks "$EXPAR" train --job.config_file tiny.toml --job.dump_folder "$dump" \
        --job.threads_per_rank 1 "$@" > "$dump.log" 2>&1
    rc=$?
}
fail() {
    echo "FAILED: $*"
    for log in *.log; do
        [ -f "$log" ] && { echo "--- $log"; tail -n 5 "$log"; }
    done
    exit 1
}
expect_rc() {
    [ "$rc" -eq "$1" ] || fail "exit code $rc instead of $1: $2"
}
expect_text() {
    grep -q -- "$2" "$1" || fail "\"$2\" is not in $1"
}
expect_no() {
    ! grep -q -- "$2" "$1" || fail "\"$2\" is in $1"
}
# The value of a key at a step.
metric() {
    sed -n "s/^{\"step\": $2,.*\"$3\": \([^,}]*\).*/\1/p" "$1/metrics.jsonl"
}
