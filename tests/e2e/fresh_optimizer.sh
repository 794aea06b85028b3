#!/usr/bin/env bash
# Checkpoints without moments. Moments that were not loaded start at their first step, whatever the run's step is: going on without the optimizer is
# what starting anew from the weights is.
. "$(dirname "$0")/lib.sh"
constant="--lr_scheduler.warmup_steps 0 --lr_scheduler.decay_ratio 0"

train 1 first --training.steps 10 $constant
expect_rc 0 "the first run"
cp -r first goes_on
train 1 goes_on --training.steps 16 $constant --checkpoint.exclude_from_loading optimizer,dataloader
expect_rc 0 "going on without the optimizer"
train 1 anew --training.steps 6 $constant --checkpoint.initial_load_path first
expect_rc 0 "starting from the weights"
losses() {
    grep -o '"loss": *[0-9.e+-]*' "$1/metrics.jsonl" | tail -n 6
}
[ "$(losses goes_on | wc -l)" -eq 6 ] || fail "no losses in metrics.jsonl"
diff <(losses goes_on) <(losses anew) > diff.log || fail "losses differ: the moments' step was not theirs"

# The other way round: loaded moments keep their count when the run's step starts at 0.
train 1 restarted --training.steps 2 $constant --checkpoint.initial_load_path first \
    --checkpoint.no_initial_load_model_only --checkpoint.exclude_from_loading train_state
expect_rc 0 "loading the moments and not the step"
train 1 straight --training.steps 12 $constant
expect_rc 0 "straight through"
diff <(losses restarted | tail -n 2) <(losses straight | tail -n 2) > diff.log ||
    fail "losses differ: the count of the moments was lost"

# A finished run that kept the model only says that it is finished; with more steps it cannot go on.
train 1 last --training.steps 4 --checkpoint.last_save_model_only
expect_rc 0 "a run that ends with the model only"
train 1 last --training.steps 4 --checkpoint.last_save_model_only
expect_rc 0 "the finished run again"
expect_text last.log "this run is complete: step 4 of 4"
train 1 last --training.steps 8
expect_rc 2 "going on from the model only"
expect_text last.log "holds the model only"
echo "moments count their own updates"
