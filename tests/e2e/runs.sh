#!/usr/bin/env bash
# What one start leaves to the next: going back to an earlier step, metrics without a gap, changes that are said, a failure
# while a save is under way, stopping, and writes that fail.
. "$(dirname "$0")/lib.sh"
steps_of() { grep -o '^{"step": [0-9]*' "$1" | tr -dc '0-9\n' | tr '\n' ' '; }
kept() { ls "$1/checkpoint" | sed -n 's/^step-//p' | sort -n | tr '\n' ' '; }

# ---- going back: later steps are set aside, on 1 rank and on 2
for ranks in 1 2; do
    d=back$ranks
    train $ranks $d --training.steps 20 --checkpoint.interval 2 --checkpoint.keep_latest_k 0 --lr_scheduler.total_steps 22
    train $ranks $d --training.steps 9 --checkpoint.interval 2 --checkpoint.keep_latest_k 2 --checkpoint.load_step 4 \
        --optimizer.lr 1e-4 --lr_scheduler.total_steps 22
    expect_rc 0 "$d: going back"
    expect_text $d.log "later steps than 4 are set aside in $d/checkpoint/set-aside-1"
    [ "$(kept $d)" = "8 9 " ] || fail "$d: kept $(kept $d)"
    [ "$(ls $d/checkpoint/set-aside-1 | wc -l)" = 8 ] || fail "$d: set aside: $(ls $d/checkpoint/set-aside-1)"
    [ "$(steps_of $d/metrics-1.jsonl)" = "$(seq 20 | tr '\n' ' ')" ] || fail "$d: the earlier metrics are not kept"
    train $ranks $d --training.steps 12 --checkpoint.interval 2 --checkpoint.keep_latest_k 2 --optimizer.lr 1e-4 \
        --lr_scheduler.total_steps 22
    expect_text $d.log "^resume: $d/checkpoint/step-9"
    expect_no $d.log "set aside"
    [ "$(steps_of $d/metrics.jsonl)" = "$(seq 12 | tr '\n' ' ')" ] || fail "$d: metrics $(steps_of $d/metrics.jsonl)"
    "$EXPAR" eval --checkpoint $d/checkpoint/set-aside-1/step-20 --tokens tokens.bin --seq 32 --rows 2 > eval.log 2>&1 ||
        fail "$d: what was set aside does not load"
done
# Counting the steps anew is going back as well: the weights stay until there is a newer checkpoint.
cp -r back1 anew
train 1 anew --training.steps 3 --checkpoint.exclude_from_loading train_state --lr_scheduler.total_steps 22
expect_rc 0 "counting anew"
[ "$(kept anew)" = "3 " ] || fail "counting anew: kept $(kept anew)"

# ---- a fresh start in a used folder keeps the metrics that are there
train 1 used --training.steps 3 --checkpoint.no_enable
expect_text used.log "^checkpoints: off, nothing will be saved"
train 1 used --training.steps 2 --checkpoint.no_enable
expect_text used.log "metrics: those of an earlier run are kept as used/metrics-1.jsonl"
train 1 used --training.steps 4 --checkpoint.no_enable
[ "$(steps_of used/metrics-1.jsonl)" = "1 2 3 " ] && [ "$(steps_of used/metrics-2.jsonl)" = "1 2 " ] &&
    [ "$(steps_of used/metrics.jsonl)" = "1 2 3 4 " ] || fail "metrics of earlier runs are lost"
train 1 used --training.steps 4 --checkpoint.no_enable --checkpoint.load_step 2
expect_rc 2 "load_step with checkpoints off"
expect_text used.log "checkpoint.load_step is 2, but checkpoint.enable is off"
[ "$(steps_of used/metrics.jsonl)" = "1 2 3 4 " ] || fail "load_step with checkpoints off: metrics changed"

# ---- what is not as it was is said; what is as it was is not
train 1 same --training.steps 10
changed() { # NAME TEXT OPTIONS: resuming says TEXT
    local name=$1 text=$2
    shift 2
    rm -rf "$name"
    cp -r same "$name"
    train 1 "$name" --training.steps 12 --lr_scheduler.total_steps 10 "$@"
    expect_rc 0 "$name"
    [ -z "$text" ] && { expect_no "$name.log" "^warning:"; return; }
    expect_text "$name.log" "^warning: $text"
}
changed nothing ""
cp tokens.bin elsewhere.bin
changed moved "training.dataset_path was" --training.dataset_path elsewhere.bin
expect_no moved.log "^warning: the data"
changed stretched "the learning rate's schedule was 10 steps long in the checkpoint and is 40 now: .*total_steps = 10" \
    --lr_scheduler.total_steps 40
changed shuffled "training.shuffle was off in the checkpoint and is on now" --training.shuffle
cp tokens.bin before.bin
head -c 4000 before.bin >> tokens.bin
changed appended "the data had 40,*000 tokens in the checkpoint and has 41,*000 now"
(tail -c 80000 before.bin; head -c 80000 before.bin) > tokens.bin
changed swapped "the data or its tokenizer is not what the checkpoint was trained on"
cp before.bin tokens.bin
changed balanced "debug.moe_force_load_balance is on" --debug.moe_force_load_balance
for i in $(seq 200); do printf '{"text": "%d: the %d people went up on day %d"}\n' "$i" $((i * i % 97)) $((i * 31 % 365)); done > text.jsonl
"$EXPAR" tokenizer-train text.jsonl --vocab 262 --out tok > tok.log 2>&1 || fail "tokenizer-train"
text="--training.dataset text --training.dataset_path text.jsonl --model.hf_assets_path tok"
train 1 text $text --training.steps 4
"$EXPAR" tokenizer-train text.jsonl --vocab 400 --out tok > tok.log 2>&1 || fail "tokenizer-train"
train 1 text $text --training.steps 6 --lr_scheduler.total_steps 4
expect_text text.log "^warning: the data had"

# ---- a failure while a save is under way publishes it first, on every number of ranks
cp tokens.bin bad.bin
printf '\377\377\377\177' | dd of=bad.bin bs=1 seek=$((4 * (33 * 4 * 6 + 40))) conv=notrunc 2> dd.log
for ranks in 1 2; do
    train $ranks fails$ranks --training.dataset_path bad.bin --training.local_batch_size $((4 / ranks)) --checkpoint.interval 6
    [ "$rc" -ne 0 ] || fail "a bad token id trains"
    expect_text fails$ranks.log "^checkpoint: fails$ranks/checkpoint/step-6"
    expect_text fails$ranks.log "^error: .*bad.bin"
    [ "$(kept fails$ranks)" = "6 " ] || fail "$ranks ranks: step-6 is lost"
    [ "$(steps_of fails$ranks/metrics.jsonl)" = "1 2 3 4 5 6 " ] || fail "metrics: $(steps_of fails$ranks/metrics.jsonl)"
done

# ---- the line of a saved step is there whenever the run is killed
kills=6
[ "${XP_TEST_LONG:-0}" != 0 ] && kills=60
for mode in disabled async; do
    for i in $(seq $kills); do
        NGPU=1 "$EXPAR" train --job.config_file tiny.toml --job.dump_folder "kill-$mode" --job.threads_per_rank 1 --training.steps 100000 \
            --checkpoint.interval 1 --checkpoint.keep_latest_k 2 --checkpoint.async_mode $mode > kill.log 2>&1 &
        pid=$!
        sleep 0.$((RANDOM % 4 + 2))
        kill -KILL $pid
        wait $pid 2> wait.log
        last=$(kept "kill-$mode" | awk '{print $NF}')
        [ -z "$last" ] || [ "$(steps_of "kill-$mode/metrics.jsonl" | tr ' ' '\n' | awk -v l="$last" '$1 != "" && $1 <= l' | tr '\n' ' ')" = \
            "$(seq "$last" | tr '\n' ' ')" ] || fail "$mode, kill $i: steps up to $last are saved, metrics.jsonl lacks some"
    done
done

# ---- closed standard descriptors do not end up in files
for closed in '<&-' '>&-' '2>&-' '<&- >&- 2>&-'; do
    rm -rf closed
    NGPU=1 eval '"$EXPAR" train --job.config_file tiny.toml --job.dump_folder closed --job.threads_per_rank 1 --training.steps 4 \
        --metrics.log_freq 1 --checkpoint.interval 2' "$closed" > closed.log 2>&1 || fail "closed $closed"
    [ "$(steps_of closed/metrics.jsonl)" = "1 2 3 4 " ] && [ "$(wc -l < closed/metrics.jsonl)" = 4 ] || fail "closed $closed: metrics.jsonl"
    "$EXPAR" eval --checkpoint closed/checkpoint/step-4 --tokens tokens.bin --seq 32 --rows 2 > eval.log 2>&1 || fail "closed $closed: step-4"
done

# ---- what follows the step line; a launcher that is not understood; little address space
train 2 line --training.steps 3 --metrics.log_freq 1
expect_text line.log "^step:  2  loss: .*mfu: n/a  lr: [0-9.]*e-0[0-9]  total: [0-9,]*  time: [0-9.e-]*s  ETA: [0-9]*s"
# A terminal shows what fits, the ETA before the rest.
if command -v script > /dev/null && command -v stty > /dev/null; then
    for columns in 100 122 200; do
        NO_COLOR=1 NGPU=2 script -qec "stty cols $columns; '$EXPAR' train --job.config_file tiny.toml --job.dump_folder wide --job.threads_per_rank 1 \
            --training.steps 3 --metrics.log_freq 1 --checkpoint.no_enable" /dev/null < /dev/null > "pty-$columns.log" 2>&1 || fail "a terminal of $columns columns"
        # between the clearings of the progress bar
        tr '\r' '\n' < "pty-$columns.log" | sed 's/\x1b\[K//g' | grep '^step:' > lines.log || fail "no step line on a terminal"
        case $columns in
        100) expect_no lines.log "ETA" ;;
        122) expect_text lines.log "^step:  2 .*mfu: n/a  ETA: [0-9]*s$" ;;
        200) expect_text lines.log "^step:  2 .*  lr: .*  total: .*  time: .*  ETA: [0-9]*s$" ;;
        esac
        [ "$columns" = 100 ] || ! awk -v c=$columns 'length > c { wide = 1 } END { exit !wide }' lines.log || fail "a step line is wider than $columns"
        rm -rf wide
    done
fi
for value in 'WORLD_SIZE=8 RANK=3' MV2_COMM_WORLD_SIZE=2; do
    NGPU=1 env $value "$EXPAR" train --job.config_file tiny.toml --job.dump_folder foreign --training.steps 2 > foreign.log 2>&1
    rc=$?
    expect_rc 2 "$value"
    expect_text foreign.log "$value in the environment: another launcher"
    [ ! -e foreign ] || fail "$value: a folder was made"
done
WORLD_SIZE=1 train 1 alone --training.steps 2
expect_rc 0 "WORLD_SIZE=1"
if ! ldd "$EXPAR" | grep -qE 'lib[at]san'; then
    for kib in 60000 100000 150000 250000 400000 700000; do
        (ulimit -v $kib; timeout -s KILL 20 "$EXPAR" --version) > version.log 2>&1
        rc=$?
        [ $rc -ne 137 ] || fail "--version hangs under ulimit -v $kib"
        [ $rc -eq 127 ] || [ $rc -eq 126 ] || expect_text version.log "^expar 0"
        (ulimit -v $kib; NGPU=1 timeout -s KILL 30 "$EXPAR" train --job.config_file tiny.toml --job.dump_folder small --training.steps 2) > small.log 2>&1
        rc=$?
        [ $rc -ne 137 ] || fail "train hangs under ulimit -v $kib"
        [ $rc -eq 0 ] || [ -s small.log ] || fail "train ends without a word under ulimit -v $kib"
        rm -rf small
    done
fi

# ---- bounds of Adam
train 1 eps --optimizer.eps 0
expect_rc 2 "eps 0"
expect_text eps.log "optimizer.eps is 0, must be 1e-30 to 1"
train 1 beta --optimizer.beta2 1
expect_rc 2 "beta2 1"
expect_text beta.log "optimizer.beta2 is 1, must be at least 0 and below 1"
echo ok
