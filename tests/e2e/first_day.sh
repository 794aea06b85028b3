#!/usr/bin/env bash
# A user's first day, shortened: ./run_train.sh as it is (over a program that is built already), Ctrl-C
# in the middle, the same command again, and once more; then a sample, an export, and evaluations of
# checkpoint and export that agree.
. "$(dirname "$0")/lib.sh"
set -m # jobs in process groups of their own, as a terminal has them: Ctrl-C reaches the whole group
source=${SOURCE:?the root of the source tree}

mkdir -p home/scripts home/configs home/assets home/build/release/bin
cp "$source/run_train.sh" home/
cp "$source/configs/debug_moe.toml" home/configs/
cp "$source/scripts/prepare_text.sh" home/scripts/
ln -s "$EXPAR" home/build/release/bin/expar
for script in setup build; do printf '#!/bin/sh\n' > home/scripts/$script.sh && chmod +x home/scripts/$script.sh; done
cd home || exit 1
if ! command -v bible > /dev/null || [ ! -e /usr/lib/bible.data ]; then
    echo "the text's packages are missing: made-up text instead"
    mkdir -p assets/text
    for i in $(seq 500); do
        printf '{"text": "%d. And the people of city %d went out on day %d, and said unto the king of the %d gates"}\n' \
            "$i" $((i * i % 97)) $((i * 31 % 365)) $((i % 13))
    done > assets/text/kjv_train.jsonl
    head -n 40 assets/text/kjv_train.jsonl > assets/text/kjv_valid.jsonl
fi

export NGPU=2
dump=outputs/debug_moe
short="--training.steps 60 --training.seq_len 64 --checkpoint.interval 25 --lr_scheduler.warmup_steps 6
    --job.threads_per_rank 1 --validation.steps 3"
lines() { cat $dump/metrics.jsonl 2> /dev/null | wc -l; }

# Ctrl-C in the middle.
./run_train.sh $short > first.log 2>&1 &
pid=$!
for _ in $(seq 1200); do
    [ "$(lines)" -ge 3 ] && break
    kill -0 $pid 2> /dev/null || break
    sleep 0.05
done
kill -INT -- -$pid
wait $pid
rc=$?
expect_rc 0 "Ctrl-C"
expect_text first.log "^memory: predicted"
expect_text first.log "^step:  1  loss: "
expect_text first.log "SIGINT: this step is finished and saved first"
expect_text first.log "^stopped: step"
expect_text first.log "the same command resumes from step-"
expect_no first.log "error"
expect_no first.log "A sample of what it has learned"
at=$(lines)
[ "$at" -lt 60 ] || fail "it was not stopped"
[ -e $dump/checkpoint/step-"$at"/manifest.json ] || fail "no checkpoint of step $at"

# The same command goes on, ends, and shows what the run has learned.
./run_train.sh $short > second.log 2>&1
rc=$?
expect_rc 0 "resumed"
expect_text second.log "^resume: .*$dump/checkpoint/step-$at,"
expect_text second.log "^validate step: 60  loss: "
expect_text second.log "^done: step 60 of 60"
expect_text second.log "A sample of what it has learned"
expect_text second.log "What to try next"
[ "$(lines)" -eq 60 ] || fail "$(lines) lines in metrics.jsonl"
awk -v a="$(metric $dump 1 loss)" -v b="$(metric $dump 60 loss)" 'BEGIN { exit !(a > 7.4 && a < 7.9 && b < a - 0.8) }' ||
    fail "the loss goes from $(metric $dump 1 loss) to $(metric $dump 60 loss)"
[ "$(metric $dump 60 ep_bytes)" -gt 0 ] || fail "no expert parallelism"

# A finished run says so and changes nothing.
find $dump/checkpoint -type f -exec sha256sum {} + | sort > before
./run_train.sh $short > third.log 2>&1
rc=$?
expect_rc 0 "finished"
expect_text third.log "this run is complete: step 60 of 60"
find $dump/checkpoint -type f -exec sha256sum {} + | sort | cmp -s - before || fail "a finished run changed its checkpoints"

# A file as the first word is trained as it stands, without the debug run's batch and degree.
./run_train.sh ../tiny.toml --training.steps 2 --job.dump_folder outputs/own > own.log 2>&1
rc=$?
expect_rc 0 "a file of one's own"
expect_text own.log "^config: ../tiny.toml"
expect_text own.log "expert parallel 1 "
expect_text own.log "(2 a rank x 2 ranks x 1 microbatches)"

# The same text for the same seed, from the checkpoint and from its export.
expar=build/release/bin/expar
"$expar" export --checkpoint $dump --out model > export.log 2>&1
rc=$?
expect_rc 0 "export"
expect_text export.log "exported .*step-60"
for from in "--checkpoint $dump" "--hf model"; do
    "$expar" generate $from --prompt "And God" --max-tokens 40 --seed 5 --temperature 0.8 > "sample${from%% *}.txt" 2> generate.log
    rc=$?
    expect_rc 0 "generate $from"
done
[ "$(wc -c < sample--hf.txt)" -gt 20 ] || fail "no text was generated"
cmp sample--checkpoint.txt sample--hf.txt || fail "checkpoint and export generate different texts"

# Evaluations agree, on ids and on text, with the expert bias and without.
"$expar" tokenize --tokenizer assets/tokenizer --out valid.bin assets/text/kjv_valid.jsonl > tokenize.log 2>&1
rc=$?
expect_rc 0 "tokenize"
value() { sed -n "s/.*\"$2\": \([0-9.e+-]*\).*/\1/p" "$1"; }
for data in "--tokens valid.bin" "--data assets/text/kjv_valid.jsonl"; do
    for from in "--checkpoint $dump" "--hf model"; do
        "$expar" eval $from $data --seq 64 --rows 60 --json > "eval${from%% *}.json" 2> eval.log
        rc=$?
        expect_rc 0 "eval $from $data"
    done
    for key in loss loss_without_expert_bias; do
        awk -v a="$(value eval--checkpoint.json $key)" -v b="$(value eval--hf.json $key)" \
            'BEGIN { d = a - b; if (d < 0) d = -d; exit !(a > 1 && d <= 1e-6 * a) }' ||
            fail "$key on $data: $(value eval--checkpoint.json $key) and $(value eval--hf.json $key)"
    done
    echo "eval $data: $(value eval--checkpoint.json loss), exported $(value eval--hf.json loss)"
done
echo ok
