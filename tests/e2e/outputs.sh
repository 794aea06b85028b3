#!/usr/bin/env bash
# What a run leaves: first lines, metrics, TensorBoard files, validation, exports, kept checkpoints,
# weights taken from another run and from a Hugging Face folder, and no allocation inside steps.
. "$(dirname "$0")/lib.sh"

train 2 run --metrics.enable_tensorboard --validation.enable --validation.dataset_path tokens.bin \
    --validation.steps 2 --checkpoint.interval 5 --checkpoint.keep_latest_k 2 \
    --checkpoint.last_save_in_hf --metrics.log_freq 5
expect_rc 0 "run"
expect_text run.log "^expar [0-9]"
expect_text run.log "^model: .* parameters, .* active"
expect_text run.log "^ranks: 2"
expect_text run.log "^memory: predicted .* GiB per rank"
expect_text run.log "^step:  1  loss: "
expect_text run.log "^step:  5  loss: "
expect_text run.log "^step: 20  loss: .*mfu: n/a"
expect_text run.log "^validate step: 10  loss: "
expect_text run.log "^done: step 20 of 20"
expect_no run.log "$(printf '\033')"
[ -z "$(sort run.log | uniq -d)" ] || fail "said twice: $(sort run.log | uniq -d)"
[ "$(grep -c "run/checkpoint/step-20" run.log)" -eq 1 ] || fail "the last checkpoint is not named once"
tail -n 1 run.log | grep -q "^metrics: run/metrics.jsonl" || fail "the last line is $(tail -n 1 run.log)"
[ "$(ls run/checkpoint | tr '\n' ' ')" = "step-15 step-20 " ] || fail "kept: $(ls run/checkpoint)"
[ "$(ls run/tb | wc -l)" -eq 1 ] || fail "no event file"
[ -s run/config.toml ] || fail "no config.toml"
[ -n "$(metric run 10 validation_loss)" ] || fail "no validation loss"
[ "$(wc -l < run/metrics.jsonl)" -eq 20 ] || fail "metrics.jsonl has not 20 lines"
[ -s run/hf-step-20/model.safetensors ] || fail "no export"
[ -s run/hf-step-20/config.json ] || fail "no config.json in the export"

# The written configuration starts the same run.
NGPU=2 "$EXPAR" train --job.config_file run/config.toml --job.dump_folder copy > copy.log 2>&1
rc=$?
expect_rc 0 "from config.toml"
cmp run/checkpoint/step-20/rank-00001.safetensors copy/checkpoint/step-20/rank-00001.safetensors ||
    fail "config.toml does not give the same run"

# Weights of a run, and of its export, start another one at the same loss.
first_loss() { metric "$1" 1 loss; }
train 1 from_run --checkpoint.initial_load_path run --training.steps 2
expect_rc 0 "initial_load_path"
train 1 from_hf --checkpoint.initial_load_path run/hf-step-20 --checkpoint.initial_load_in_hf --training.steps 2
expect_rc 0 "initial_load_in_hf"
[ "$(first_loss from_run)" = "$(first_loss from_hf)" ] || fail "weights of a run and of its export differ"
awk -v a="$(first_loss from_run)" -v b="$(first_loss run)" 'BEGIN { exit !(a < b - 0.01) }' ||
    fail "the loaded weights know nothing"

# Model only: cannot go on, but can start.
train 1 only --checkpoint.last_save_model_only --checkpoint.interval 100
expect_rc 0 "last_save_model_only"
train 1 only --training.steps 30
expect_rc 2 "resume from a model only"
expect_text only.log "holds the model only"
train 1 started --checkpoint.initial_load_path only/checkpoint/step-20 --training.steps 2
expect_rc 0 "start from a model only"

# The peak resident set is what was predicted, within 10 % (a sanitizer's own memory is not).
if ! ldd "$EXPAR" | grep -qE 'lib[at]san'; then
    NGPU=2 "$EXPAR" train --job.dump_folder big --model.flavor tiny_moe --training.dataset tokens \
        --training.dataset_path tokens.bin --training.seq_len 256 --training.local_batch_size 8 \
        --training.steps 3 --job.threads_per_rank 1 --checkpoint.enable > big.log 2>&1
    rc=$?
    expect_rc 0 "big"
    predicted=$(sed -n 's/^memory: predicted.*; \([0-9.]*\) GiB for this process$/\1/p' big.log)
    awk -v p="$predicted" -v real="$(metric big 3 memory_gib)" 'BEGIN {
        exit !(p > 0.1 && real > 0.9 * p && real < 1.1 * p)
    }' || fail "predicted $predicted GiB, peak $(metric big 3 memory_gib) GiB"
fi

# Parts left out when loading.
cp -r run without
train 2 without --training.steps 22 --checkpoint.exclude_from_loading optimizer,dataloader
expect_rc 0 "exclude_from_loading"
[ "$(metric without 21 rows_seen)" = 4 ] || fail "the data's position was not left out"
echo ok
