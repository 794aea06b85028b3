#!/usr/bin/env bash
# A checkpoint that is there but cannot be looked at is an error, never "no checkpoint": nothing is trained, replaced or emptied.
. "$(dirname "$0")/lib.sh"
train 1 good --training.steps 10 --checkpoint.interval 5
expect_rc 0 "the first run"

# refused NAME TEXT: the folder NAME is resumed; it must end with TEXT and stay as it was.
refused() {
    cp "$1/metrics.jsonl" before.jsonl
    ls -R "$1/checkpoint" > before.ls
    train 1 "$1" --training.steps 20
    [ "$rc" -ne 0 ] || fail "$1: trained"
    expect_text "$1.log" "$2"
    expect_no "$1.log" "^step:"
    cmp -s before.jsonl "$1/metrics.jsonl" || fail "$1: metrics.jsonl changed"
    [ "$(cat before.ls)" = "$(ls -R "$1/checkpoint")" ] || fail "$1: checkpoints changed"
}
copy() { rm -rf "$1"; cp -r good "$1"; }
copy loop # a path that does not resolve: the same for root and everyone
rm loop/checkpoint/step-10/manifest.json
ln -s manifest.json loop/checkpoint/step-10/manifest.json
refused loop "step-10/manifest.json: Too many levels of symbolic links"
copy gone # the disk with the checkpoints is not mounted
rm -r gone/checkpoint
ln -s /nowhere/checkpoint gone/checkpoint
refused gone "gone/checkpoint is a link to something that is not there"
copy file
rm -r file/checkpoint
: > file/checkpoint
refused file "file/checkpoint: Not a directory"
if [ "$(id -u)" = 0 ] && command -v setpriv > which.log; then
    copy other
    chmod 755 "$WORK"
    chmod -R a+rwX .
    chmod 700 other/checkpoint/step-10
    real=$EXPAR
    EXPAR=$WORK/as_nobody
    printf '#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups "%s" "$@"\n' "$real" > "$EXPAR"
    chmod 755 "$EXPAR"
    refused other "step-10/manifest.json: Permission denied"
    chmod 755 other/checkpoint/step-10
    chmod 311 other/checkpoint
    refused other "other/checkpoint: Permission denied"
fi
echo ok
