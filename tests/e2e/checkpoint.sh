#!/usr/bin/env bash
# expar checkpoint: list, show and verify a run's checkpoints; one flipped bit is found and named.
. "$(dirname "$0")/lib.sh"

run() { # output in out.log, exit code in $rc
    timeout 60 "$EXPAR" checkpoint "$@" > out.log 2>&1
    rc=$?
}

train 2 a --training.steps 20 --parallelism.expert_parallel_degree 2
expect_rc 0 "the run"

run list a
expect_rc 0 "list"
expect_text out.log "^step-10 .* 2 files"
expect_text out.log "^step-20 .* 2 files"
run list a/checkpoint --json
expect_rc 0 "list --json"
expect_text out.log '"step": 20, "path": "a/checkpoint/step-20"'
expect_text out.log '"tokens_seen": 2560'

run show a
expect_rc 0 "show"
expect_text out.log "^step-20 "
expect_text out.log "rank-00001.safetensors"
expect_text out.log "param/model.embed_tokens.weight .*\[512, 32\]"
run show a --step 10 --json
expect_rc 0 "show --json"
expect_text out.log '^{"step": 10,'
expect_text out.log '"name": "param/model.embed_tokens.weight", "dtype": "f32", "shape": \[512, 32\]'

run verify a --all
expect_rc 0 "verify"
expect_text out.log "^step-10: whole"
expect_text out.log "^step-20: whole"

# ---- one bit in the middle of one rank's file
shard=a/checkpoint/step-20/rank-00001.safetensors
at=$(($(stat -c %s $shard) / 2))
byte=$(od -An -tu1 -j $at -N 1 $shard)
printf "$(printf '\\%03o' $((byte ^ 1)))" | dd of=$shard bs=1 seek=$at conv=notrunc status=none
run verify a
expect_rc 1 "verify of a damaged checkpoint"
expect_text out.log "step-20: DAMAGED: .*rank-00001.safetensors"
run verify a --all --json
expect_rc 1 "verify --all of a damaged checkpoint"
expect_text out.log '"step": 10, .*"whole": true'
expect_text out.log '"step": 20, .*"whole": false, "error": ".*rank-00001.safetensors'
run verify a/checkpoint/step-10
expect_rc 0 "verify of the other one"

# ---- a manifest that is cut
truncate -s -20 a/checkpoint/step-10/manifest.json
run list a
expect_rc 1 "list with a damaged manifest"
expect_text out.log "step-10 .*DAMAGED"
expect_text out.log "^step-20 "

# ---- what is not there, and wrong usage
mkdir empty
run list empty
expect_rc 1 "list of an empty folder"
expect_text out.log "no complete checkpoint in empty$"
mkdir runs # the folder above a run's
ln -s ../a runs/a
for command in list show verify; do
    run $command runs
    expect_rc 1 "$command of the folder above a run's"
    expect_text out.log "no complete checkpoint in runs; did you mean runs/a?$"
done
"$EXPAR" generate --checkpoint runs --prompt x > generate.log 2>&1 && fail "generate from the folder above a run's"
expect_text generate.log "did you mean runs/a?$"
run verify a --step 15
expect_rc 1 "verify of a step that is not there"
run verfy a
expect_rc 2 "an unknown action"
expect_text out.log 'did you mean "verify"'
run list
expect_rc 2 "without a folder"
run list a --all
expect_rc 2 "--all without verify"
