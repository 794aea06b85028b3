#!/usr/bin/env bash
# Exports that serve: token ids, context length and generation settings of the model that a run started from, the
# tokenizer wherever the export is called, no file from outside the folder; fused experts both ways.
. "$(dirname "$0")/lib.sh"

run() { # output in out.log, exit code in $rc
    timeout 60 "$EXPAR" "$@" > out.log 2>&1
    rc=$?
}
loss_of() { # of a Hugging Face folder
    "$EXPAR" eval --hf "$1" --tokens tokens.bin --seq 32 --rows 4 --json 2> eval.log |
        sed -n 's/.*"loss": \([0-9.]*\).*/\1/p'
}

# ---- a model that people fine-tune: made by a run, with what its publisher adds
mkdir text
printf 'the quick brown fox jumps over the lazy dog %d\n' $(seq 200) > text/a.txt
"$EXPAR" tokenizer-train text/a.txt --vocab 300 --out tok > out.log 2>&1 || fail "no tokenizer"
train 1 a --model.hf_assets_path tok --training.steps 2 --checkpoint.last_save_in_hf
expect_rc 0 "the first run"
expect_text a.log "expert bias: moe.load_balance_coeff"
mv a/hf-step-2 base
expect_text base/generation_config.json '"eos_token_id"'
expect_text base/config.json '"eos_token_id"'
expect_text base/config.json '"max_position_embeddings": 32'
rm -f base/expar_extra.safetensors
sed -i 's/"max_position_embeddings": 32/"max_position_embeddings": 40960/; s/"eos_token_id": [0-9]*/"eos_token_id": [7, 9]/; s/^{/{"pad_token_id": 3,/' base/config.json
echo '{"eos_token_id": [7, 9], "temperature": 0.6}' > base/generation_config.json
echo '{{ chat }}' > base/chat_template.jinja

# ---- fine-tuned, and exported from another folder
mkdir -p project
cp -r base tokens.bin project/
sed '/^\[model\]/,/^\[training\]/{/^\[training\]/!d}' tiny.toml > project/ft.toml
printf '[model]\nflavor = "hf"\nhf_assets_path = "base"\n' >> project/ft.toml
(cd project && "$EXPAR" train ft.toml --checkpoint.initial_load_in_hf --job.dump_folder out --moe.load_balance_coeff 0 \
    --job.threads_per_rank 1 --training.steps 1 > ../ft.log 2>&1) || fail "no fine-tuning"
expect_no ft.log "expert bias:"
check_export() { # FOLDER
    expect_text "$1/config.json" '"max_position_embeddings": 40960'
    expect_text "$1/config.json" '"pad_token_id": 3'
    tr -d ' \n' < "$1/config.json" | grep -q '"eos_token_id":\[7,9\]' || fail "other token ids in $1"
    cmp -s base/generation_config.json "$1/generation_config.json" || fail "another generation_config.json in $1"
    cmp -s base/tokenizer.json "$1/tokenizer.json" || fail "another tokenizer in $1"
    cmp -s base/chat_template.jinja "$1/chat_template.jinja" || fail "another chat template in $1"
}
for where in . project /; do
    (cd "$where" && "$EXPAR" export --checkpoint "$WORK/project/out" --out "$WORK/x" > "$WORK/out.log" 2>&1) ||
        fail "no export from $where"
    check_export x
done
plain=$(loss_of x)
[ -n "$plain" ] || fail "the export cannot be evaluated"

# ---- fused experts: out, and in again
run export --checkpoint project/out --out fused --fused-experts
expect_rc 0 "fused experts"
check_export fused
head -c 4000 fused/model.safetensors | grep -aq 'mlp.experts.gate_up_proj' || fail "experts are not fused"
[ "$(loss_of fused)" = "$plain" ] || fail "fused experts: loss $(loss_of fused) instead of $plain"
expect_no eval.log "not used"

# ---- experts shared by processes: the same loss to rounding, the same greedy text
if [ -n "${MPIRUN:-}" ]; then
    run eval --hf x --tokens tokens.bin --seq 32 --rows 4 --json --ranks 2 --threads 1
    expect_rc 0 "eval with 2 ranks"
    [ "$(grep -c '"loss"' out.log)" -eq 1 ] || fail "2 ranks: not one result"
    awk -v a="$plain" -v b="$(sed -n 's/.*"loss": \([0-9.]*\).*/\1/p' out.log)" \
        'BEGIN { d = a - b; exit !(b > 0 && d * d < 1e-10) }' || fail "2 ranks: $(cat out.log) instead of $plain"
    for ranks in 1 2 4; do
        run generate --hf x --prompt "the quick" --greedy --max-tokens 20 --threads 1 --ranks $ranks
        expect_rc 0 "generate with $ranks ranks"
        cp out.log "text.$ranks"
        cmp -s text.1 "text.$ranks" || fail "$ranks ranks: another text"
    done
    run eval --hf x --tokens tokens.bin --seq 32 --ranks 3
    expect_rc 2 "3 ranks for 8 experts"
    expect_text out.log "3 ranks do not divide the model's 8 experts"
fi

# ---- symbolic links: out of the folder they are not followed, in a Hugging Face cache they are
mkdir -p linked secret hub/models--a--b/snapshots/abc hub/models--a--b/blobs
cp base/* linked/
echo '{"secret": 1}' > secret/token.json
ln -sf ../secret/token.json linked/special_tokens_map.json
run export --checkpoint project/out --out y --tokenizer linked
expect_rc 0 "a link out of the folder"
expect_text out.log "special_tokens_map.json is a symbolic link out of that folder"
[ ! -e y/special_tokens_map.json ] || fail "a link out of the folder was followed"
for f in base/*; do
    cp "$f" "hub/models--a--b/blobs/$(basename "$f").x"
    ln -s "../../blobs/$(basename "$f").x" "hub/models--a--b/snapshots/abc/$(basename "$f")"
done
run export --checkpoint project/out --out z --tokenizer hub/models--a--b/snapshots/abc
expect_rc 0 "a Hugging Face cache"
expect_no out.log "symbolic link"
cmp -s base/tokenizer.json z/tokenizer.json || fail "no tokenizer from a Hugging Face cache"
[ ! -L z/tokenizer.json ] || fail "a link in the export"

# ---- what cannot be exported is said before the first step
train 1 s --training.steps 1 --moe.score_func sigmoid --checkpoint.last_save_in_hf
expect_rc 2 "a router that transformers does not have"
expect_text s.log "checkpoint.last_save_in_hf: transformers' Qwen3-MoE has neither a sigmoid router"
expect_no s.log "step:"

echo "export: all as it should be"
