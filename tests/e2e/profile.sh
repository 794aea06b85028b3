#!/usr/bin/env bash
# expar bench --write-profile: this machine's cores, measured; expar plan accepts the file.
. "$(dirname "$0")/lib.sh"

"$EXPAR" bench --write-profile machine.toml --device cpu --steps 1 --name mine > profile.log 2>&1
rc=$?
expect_rc 0 "measuring"
grep -q 'wrote machine.toml' profile.log || fail "$(cat profile.log)"
for ranks in 1 2; do
    "$EXPAR" plan tiny.toml --gpu ./machine.toml --gpus-per-node $ranks --json > plan.json 2> plan.log
    rc=$?
    expect_rc 0 "a plan for $ranks ranks"
    grep -q '"gpu": "mine"' plan.json && grep -q '"tokens_per_s_gpu": [0-9]' plan.json || fail "$(cat plan.json)"
done
cp tiny.toml before.toml
"$EXPAR" bench --write-profile tiny.toml --device cpu > over.log 2>&1
rc=$?
expect_rc 2 "a description over another file"
[ "$(wc -l < over.log)" -eq 1 ] && cmp tiny.toml before.toml || fail "$(cat over.log)"
"$EXPAR" bench --write-profile machine.toml --device cpu --steps 1 > again.log 2>&1 || fail "a description is not measured again: $(cat again.log)"
! "$EXPAR" bench --write-profile 2> missing.log || fail "a missing file name"
grep -q '^error:' missing.log || fail "$(cat missing.log)"
"$EXPAR" bench --write-profile machine.toml --like h200 --device cpu > like.log 2>&1
rc=$?
expect_rc 2 "a GPU's description for a CPU"
