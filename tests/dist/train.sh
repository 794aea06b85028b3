#!/usr/bin/env bash
# `expar train` under mpirun writes the same bits as with rank threads; a rank that runs out of memory is what one reads last.
. "$(dirname "$0")/lib.sh"
"$MAKE_TOKENS" tokens.bin 40000 512 || fail "no tokens"
cat > tiny.toml <<'TOML'
[model]
flavor = "tiny_moe-deepep"
vocab_size = 512
[training]
dataset = "tokens"
dataset_path = "tokens.bin"
seq_len = 64
local_batch_size = 2
steps = 6
[optimizer]
lr = 3e-3
[lr_scheduler]
warmup_steps = 2
[checkpoint]
enable = true
interval = 3
[comm]
train_timeout_seconds = 20
TOML
train=("$EXPAR" train --job.config_file "$WORK/tiny.toml" --training.dataset_path "$WORK/tokens.bin" --job.threads_per_rank 1)

# same RANKS OPTIONS...: both ways, and every file of the last checkpoint compared
same() {
    local n=$1 name
    name=$(echo "same-$*" | tr -c 'a-z0-9\n' -)
    shift
    NGPU=$n "${train[@]}" --job.dump_folder "$WORK/$name-t" "$@" > "$name-t.log" 2>&1 ||
        { cat "$name-t.log"; fail "$name: threads"; }
    launch "$n" "$name" "${train[@]}" --job.dump_folder "$WORK/$name-m" "$@"
    expect_ok "$n" "$name"
    local files=0 file
    for file in "$name-t"/checkpoint/step-6/*.safetensors; do
        cmp "$file" "$name-m/checkpoint/step-6/$(basename "$file")" || fail "$name: other bits"
        files=$((files + 1))
    done
    [ $files -gt 0 ] || fail "$name: there is no checkpoint"
    echo "$name: $files files with the same bits"
}
same 2 --parallelism.expert_parallel_degree 1
same 2 --parallelism.expert_parallel_degree 2
same 4 --parallelism.expert_parallel_degree 4
same 4 --parallelism.expert_parallel_degree 2 --parallelism.expert_parallel_comm_backend standard
same 4 --parallelism.expert_parallel_degree 4 --debug.moe_force_load_balance
same 8 --parallelism.expert_parallel_degree 8
same 2 --parallelism.expert_parallel_degree 2 --parallelism.expert_parallel_overlap

# One rank may not have the memory that the others have: its own words come last, once.
cat > limited.sh <<'SH'
[ "$OMPI_COMM_WORLD_RANK" = 1 ] && ulimit -v "$LIMIT_KB"
exec "$@"
SH
export LIMIT_KB=1000000
LIMIT=60 launch 3 memory bash "$WORK/limited.sh" "${train[@]}" --job.dump_folder "$WORK/memory-d" \
    --training.local_batch_size 64 --training.seq_len 512 --training.steps 2
for r in 0 1 2; do
    [ "$(cat memory/rc.$r)" = 1 ] || fail "memory: rank $r exited with $(cat memory/rc.$r)"
done
last=$(grep '^error: ' memory/all.log | tail -n 1)
[[ $last == "error: rank 1 gave up in "*memory* || $last == "error: rank 1 gave up in "*reserve* ]] ||
    fail "memory: the last line is not the root cause: $last"
[ "$(grep -c 'reserve\|no memory\|out of memory' memory/all.log)" = 1 ] || fail "memory: the cause is not said once"
echo "memory: $last"
echo "ok: train"
