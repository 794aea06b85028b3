#!/usr/bin/env bash
# Data as people have it, through the program: every way into `expar tokenize` and `expar train` gives the same tokens,
# what is skipped or starts over is said, and hostile files end with a message.
. "$(dirname "$0")/lib.sh"

for i in $(seq 60); do
    printf '{"id": 1%030d, "text": "document %d of some words and numbers %d"}\n' "$i" "$i" $((i * i))
done > words.jsonl
"$EXPAR" tokenizer-train words.jsonl --vocab 300 --out tok > tok.log 2>&1 || fail "tokenizer-train"
text="--training.dataset text --model.hf_assets_path tok --checkpoint.no_enable --metrics.log_freq 1"
losses() { grep -o '"loss": [^,]*' "$1/metrics.jsonl"; }

# ---- one way to read files ------------------------------------------------------------------

"$EXPAR" tokenize --tokenizer tok --out want.bin words.jsonl 2> out.log || fail "tokenize --out"
same() { cmp -s want.bin "$1" || fail "$2: other tokens than those of words.jsonl"; }
"$EXPAR" tokenize --tokenizer tok --out got.bin - < words.jsonl 2> out.log || fail "JSON lines on standard input"
same got.bin "standard input"
gzip -c words.jsonl | "$EXPAR" tokenize --tokenizer tok --out got.bin - 2> out.log || fail "gzip on standard input"
same got.bin "gzip on standard input"
mkdir -p d/e && head -n 30 words.jsonl > d/A.JSONL && tail -n +31 words.jsonl | gzip > d/e/b.jsonl.gz && echo x > d/notes.md
"$EXPAR" tokenize --tokenizer tok --out got.bin d 2> out.log || fail "a folder"
same got.bin "a folder"
expect_text out.log "skipped 1 file of other kinds: 1 .md"
sed 's/"text"/"content"/' words.jsonl | "$EXPAR" tokenize --tokenizer tok --text-field content --out got.bin - 2> out.log || fail "--text-field"
same got.bin "--text-field"
{ echo nonsense; cat words.jsonl; echo '{"text": 3}'; } > bad.jsonl
"$EXPAR" tokenize --tokenizer tok --bad-lines skip --out got.bin bad.jsonl 2> out.log || fail "--bad-lines skip"
same got.bin "--bad-lines skip"
expect_text out.log "skipped 2 bad lines; the first: bad.jsonl:1:1"
cp words.jsonl before.jsonl
"$EXPAR" tokenize --tokenizer tok --out words.jsonl words.jsonl > out.log 2>&1
rc=$?
expect_rc 2 "ids under the name of text"
[ "$(wc -l < out.log)" = 1 ] || fail "not one error: $(cat out.log)"
cmp words.jsonl before.jsonl || fail "the input is written over"
printf 'two\nlines' | "$EXPAR" tokenize --tokenizer tok > ids 2> out.log || fail "text on standard input"
[ "$(wc -l < ids)" = 1 ] || fail "text on standard input is not one document"
"$EXPAR" tokenize --tokenizer tok --out got.bin - < /dev/null 2> out.log || fail "empty standard input"
for name in x.parquet x.csv x.md x; do
    echo words > "$name"
    "$EXPAR" tokenize --tokenizer tok --out got.bin "$name" > out.log 2>&1 && fail "$name was tokenised"
    train 1 kinds $text --training.dataset_path "$name"
    expect_rc 1 "$name as training data"
    grep -q "no data at $name" kinds.log && grep -q "no data at $name" out.log || fail "$name: no clear refusal"
done
"$EXPAR" tokenize --tokenizer tok --out got.bin x.parquet > out.log 2>&1
expect_text out.log "Parquet is not read here"
expect_text out.log "| expar tokenize --tokenizer DIR --out ids.bin -"
mkdir bare && cp tok/tokenizer.json bare
"$EXPAR" tokenize --tokenizer bare --out got.bin words.jsonl 2> out.log || fail "a tokenizer without EOS"
expect_text out.log "warning: the tokenizer defines no EOS"
train 1 bare-run $text --training.dataset_path words.jsonl --model.hf_assets_path bare --training.steps 1
expect_text bare-run.log "warning: the tokenizer defines no EOS"

# ---- training -------------------------------------------------------------------------------

train 1 skip $text --training.dataset_path bad.jsonl --training.steps 2
expect_rc 1 "a bad line"
expect_text skip.log "bad.jsonl:1:1"
train 1 skip $text --training.dataset_path bad.jsonl --training.steps 2 --training.bad_lines skip
expect_rc 0 "bad lines skipped"
expect_text skip.log "skipped 2 bad lines, kept 60 documents"
train 1 plain $text --training.dataset_path words.jsonl --training.steps 2
[ "$(losses plain)" = "$(losses skip)" ] || fail "skipped lines change the others"

# several sources: inline, as an array of tables, and on the command line
head -n 40 words.jsonl > a.jsonl
tail -n 20 words.jsonl > b.jsonl
cp tiny.toml one.toml
sed -i 's/^dataset = .*/dataset = "text"/; s/^dataset_path = .*/datasets = [{path = "a.jsonl", weight = 3}, {path = "b.jsonl"}]/' one.toml
{ sed '/^datasets = /d' one.toml; printf '[[training.datasets]]\npath = "a.jsonl"\nweight = 3\n[[training.datasets]]\npath = "b.jsonl"\n'; } > two.toml
{ sed '/^datasets = /d' one.toml; } > none.toml
mix() { # NAME FILE [OPTIONS...]
    local name=$1 file=$2
    shift 2
    "$EXPAR" train --job.config_file "$file" --job.dump_folder "$name" --job.threads_per_rank 1 --model.hf_assets_path tok \
        --metrics.log_freq 1 "$@" > "$name.log" 2>&1
    rc=$?
    expect_rc 0 "$name"
}
mix inline one.toml
mix tables two.toml
mix words none.toml --training.datasets a.jsonl=3,b.jsonl=1
{ sed '/^datasets = /d; s/^dataset = "text"/&\ndataset_path = "b.jsonl"/' one.toml; } > other.toml
mix over-a-file other.toml --training.datasets a.jsonl=3,b.jsonl=1 # the command line replaces the file's dataset_path
expect_text inline.log "75.00 % of the rows from a.jsonl"
expect_text inline.log "b.jsonl starts over: epoch 2 begins"
[ "$(losses inline)" = "$(losses tables)" ] && [ "$(losses inline)" = "$(losses words)" ] && [ "$(losses inline)" = "$(losses over-a-file)" ] || fail "three ways to name sources"
mix halves one.toml --training.steps 10 --lr_scheduler.total_steps 20
mix halves one.toml --lr_scheduler.total_steps 20
[ "$(losses inline | tail -n 10)" = "$(losses halves | tail -n 10)" ] || fail "a mixture resumed at step 10 goes on otherwise"
train 1 both $text --training.dataset_path a.jsonl --training.datasets b.jsonl=1
expect_rc 2 "datasets and dataset_path"

# ---- hostile files --------------------------------------------------------------------------

train 1 good --training.steps 2 --checkpoint.interval 2
"$EXPAR" export --checkpoint good --out hf > export.log 2>&1 || fail "export"
hostile() { # WORDS COMMAND...
    local words=$1
    shift
    timeout 60 "$@" > hostile.log 2>&1
    rc=$?
    [ $rc = 1 ] || [ $rc = 2 ] || fail "exit code $rc: $*"
    expect_text hostile.log "$words"
}
cp -r hf big
sed -i 's/"num_experts": [0-9]*/"num_experts": 2147483648/' big/config.json
hostile num_experts "$EXPAR" eval --hf big --tokens tokens.bin --seq 16 --rows 1
sed -i 's/"num_experts": [0-9]*/"num_experts": 2147483647/' big/config.json
hostile num_experts "$EXPAR" eval --hf big --tokens tokens.bin --seq 16 --rows 1
sed 's/"num_hidden_layers": [0-9]*/"num_hidden_layers": 30000/' hf/config.json > big/config.json
hostile n_layers "$EXPAR" eval --hf big --tokens tokens.bin --seq 16 --rows 1
rm big/config.json && mkfifo big/config.json
hostile pipe "$EXPAR" eval --hf big --tokens tokens.bin --seq 16 --rows 1
mkfifo pipe.toml pipe.bin
hostile pipe "$EXPAR" train --job.config_file pipe.toml
hostile 'no regular file' "$EXPAR" train --job.config_file tiny.toml --training.dataset_path pipe.bin

if command -v xxhsum > xxhsum.log; then
    for rows in -1 -9223372036854775808 9223372036854775807 9007199254740993; do
        rm -rf seen && cp -r good seen
        manifest=seen/checkpoint/step-2/manifest.json
        sed -i "s/\"rows_seen\": \"[0-9]*\"/\"rows_seen\": \"$rows\"/" $manifest
        head -c -30 $manifest > body
        { cat body; printf ' "xxh64": "%s"}\n' "$(xxhsum -H1 < body | cut -d ' ' -f 1)"; } > $manifest
        hostile "rows_seen" "$EXPAR" train --job.config_file tiny.toml --job.dump_folder seen --training.steps 4
    done
else
    echo "manifests with a bad rows_seen: skipped, xxhsum (package xxhash) is not installed"
fi

# A mapped file that becomes shorter under a run.
cp tokens.bin shrinks.bin
"$EXPAR" train --job.config_file tiny.toml --job.dump_folder shrinks --job.threads_per_rank 1 --training.steps 1000000 \
    --training.dataset_path shrinks.bin --checkpoint.no_enable --training.shuffle > shrinks.log 2>&1 &
pid=$!
for _ in $(seq 200); do
    grep -q '^step: ' shrinks.log && break
    sleep 0.1
done
: > shrinks.bin
wait $pid
rc=$?
expect_rc 1 "a token file that becomes shorter"
expect_text shrinks.log "shrinks.bin: the file became shorter"

# ---- generate -------------------------------------------------------------------------------

cp tok/tokenizer*.json hf/
for seed in 1 2 3 4 5; do
    "$EXPAR" generate --hf hf --prompt "number" --max-tokens 40 --seed $seed > out.log 2>&1 || fail "generate samples ids without a token"
done
"$EXPAR" generate --hf hf --prompt "$(printf '\377%.0s' $(seq 300))" --max-tokens 2 > out.log 2>&1 ||
    fail "generate has no room for a prompt of more tokens than bytes"
echo "data: ok"
