#!/usr/bin/env bash
# Bad input of every kind, through the program: the right exit code (2 wrong usage or configuration,
# 1 failed while running), one line that says what is wrong, nothing else, within seconds, and
# earlier checkpoints as they were.
. "$(dirname "$0")/lib.sh"
export LC_ALL=C
LIMIT_S=30
n_cases=0
n_failed=0

# ---- the harness ----------------------------------------------------------------------------

# Every case starts from case/, a copy of a run with two checkpoints; PREP (if set) spoils something.
PREP=
digest() { (cd case && find checkpoint -type f -exec sha256sum {} + | sort); }
complain() {
    n_failed=$((n_failed + 1))
    echo "case $n_cases: $1"
    echo "    command: $what"
    sed 's/^/    stderr: /' err | cut -c1-300 | head -n 5
}
# bad CODE WORDS COMMAND...: WORDS are parts of the message, between semicolons.
bad() {
    local code=$1 words=$2 before rc word
    shift 2
    what="${PREP:+$PREP; }$*"
    n_cases=$((n_cases + 1))
    rm -rf case && cp -r good case
    [ -z "$PREP" ] || eval "$PREP" || { : > err; complain "cannot be prepared"; }
    PREP=
    before=$(digest)
    timeout "$LIMIT_S" "$@" > out 2> err < /dev/null
    rc=$?
    [ $rc -ne 124 ] || { complain "took more than $LIMIT_S s"; return; }
    [ $rc -eq "$code" ] || complain "exit code $rc instead of $code"
    [ "$(grep -c '^error: ' err)" -eq 1 ] || complain "$(grep -c '^error: ' err) error lines"
    ! grep -v -e '^error: ' -e '^usage: ' -e '^warning: ' err > rest || complain "more than the error: $(head -n 1 rest)"
    ! grep -q '[^[:print:][:space:]]' <(iconv -f UTF-8 -t ASCII//TRANSLIT err 2> /dev/null || echo "$(printf '\1')") ||
        complain "unprintable characters"
    [ "$(grep '^error: ' err | wc -c)" -lt 1500 ] || complain "a very long message"
    ! grep -qi 'error:' out || complain "an error on standard output"
    while IFS= read -r -d ';' word; do
        grep '^error: ' err | grep -qF -- "$word" || complain "\"$word\" is not in the message"
    done <<< "$words;"
    [ "$(digest)" = "$before" ] || complain "a checkpoint changed"
    [ -z "$(find case/checkpoint -name '.*')" ] || complain "left behind: $(find case/checkpoint -name '.*')"
}
# The same for a training run that would go on from step 4 to step 8.
bad_train() {
    local code=$1 words=$2
    shift 2
    bad "$code" "$words" "$EXPAR" train --job.config_file tiny.toml --job.dump_folder case \
        --training.steps 8 --job.threads_per_rank 1 "$@"
}
# ... with NGPU.
bad_ranks() {
    local ngpu=$1 code=$2 words=$3
    shift 3
    bad "$code" "$words" env "NGPU=$ngpu" "$EXPAR" train --job.config_file tiny.toml --job.dump_folder case \
        --training.steps 8 --job.threads_per_rank 1 "$@"
}
# ... with a config file of this text.
bad_file() {
    local code=$1 words=$2
    printf "$3" > bad.toml
    bad "$code" "$words" "$EXPAR" train --job.config_file bad.toml --job.dump_folder case
}
# A safetensors file: st FILE HEADER DATA_BYTES [HEADER_LENGTH_SAID]
st() {
    local length=${4:-${#2}} i escaped=
    for i in 1 2 3 4 5 6 7 8; do
        escaped+=$(printf '\\x%02x' $((length & 255)))
        length=$((length >> 8))
    done
    { printf "$escaped"; printf '%s' "$2"; head -c "$3" /dev/zero; } > "$1"
}

# ---- what cases start from ------------------------------------------------------------------

cat >> tiny.toml <<'TOML'
keep_latest_k = 0
TOML
train 1 good --training.steps 4 --checkpoint.interval 2
expect_rc 0 "the run that cases start from"
"$EXPAR" export --checkpoint good --out hf > export.log 2>&1 || fail "export"
for word in in the beginning god created heaven and earth; do
    for other in light was good day night waters made; do echo "$word $other $word $other"; done
done > words.txt
for i in $(seq 60); do printf '{"text": "number %d and the beginning of day %d"}\n' "$i" $((i * 7)); done > words.jsonl
"$EXPAR" tokenizer-train words.txt --vocab 300 --out tok > tok.log 2>&1 || fail "tokenizer-train"
cp -r good good.first
config_lines=$(wc -l < tiny.toml)

# ---- configuration --------------------------------------------------------------------------

bad_file 2 'bad.toml:2;stepz;did you mean;steps' '[training]\nstepz = 3\n'
bad_file 2 'bad.toml:1;trainin' '[trainin]\nsteps = 3\n'
bad_file 2 'bad.toml:2;steps;whole number' '[training]\nsteps = "three"\n'
bad_file 2 'bad.toml:2;steps' '[training]\nsteps = -5\n'
bad_file 2 'bad.toml:2;lr' '[optimizer]\nlr = -1.0\n'
bad_file 2 'bad.toml:2;max_norm' '[training]\nmax_norm = nan\n'
bad_file 2 'bad.toml:2;enable' '[checkpoint]\nenable = 1\n'
bad_file 2 'bad.toml:3;steps' '[training]\nsteps = 3\nsteps = 4\n'
bad_file 2 'bad.toml:1' '[training\nsteps = 3\n'
bad_file 2 'bad.toml:2' '[training]\nsteps = \n'
bad_file 2 'bad.toml:2' '[training]\ndataset = "tok\n'
bad_file 2 'bad.toml' '\377\376[training]\n'
bad_file 2 'bad.toml:2' '[training]\nsteps = 99999999999999999999\n'
bad_file 2 'bad.toml:2;decay_type;linear' '[lr_scheduler]\ndecay_type = "line"\n'
bad_file 2 'model.flavor;tiny_mo;did you mean' '[model]\nflavor = "tiny_mo"\n'
bad_file 2 'bad.toml:2;keep_latest_k' '[checkpoint]\nkeep_latest_k = 1\n'
bad_file 2 'bad.toml:2;tensor_parallel_degree' '[parallelism]\ntensor_parallel_degree = 2\n'
bad_file 2 'bad.toml' "$(head -c 20000 /dev/zero | tr '\0' '[')"
bad 2 'nothing.toml' "$EXPAR" train --job.config_file nothing.toml
bad 2 'folder;case' "$EXPAR" train --job.config_file case
bad 2 'nothing.toml' "$EXPAR" config nothing.toml
bad 2 'no configuration;--job.config_file' "$EXPAR" train
bad 2 'no configuration;CONFIG_FILE' env CONFIG_FILE= NGPU=2 "$EXPAR" train
bad 2 'nothing.toml' env CONFIG_FILE=nothing.toml "$EXPAR" train

# ---- command line and environment -----------------------------------------------------------

bad 2 'trian;train' "$EXPAR" trian
bad 2 '--checkpiont;--checkpoint' "$EXPAR" eval --checkpiont good
bad 2 '--hf;--checkpoint' "$EXPAR" eval --tokens tokens.bin
bad 2 '--hf;--checkpoint' "$EXPAR" eval --hf hf --checkpoint good --tokens tokens.bin
bad 2 '--seq;needs a value' "$EXPAR" eval --checkpoint good --tokens tokens.bin --seq
bad 2 '--seq;12x' "$EXPAR" eval --checkpoint good --tokens tokens.bin --seq 12x
bad 2 '--hf;--checkpoint' "$EXPAR" generate --prompt x
bad 2 '--temperature' "$EXPAR" generate --checkpoint good --temperature hot
bad 2 '--top-p' "$EXPAR" generate --checkpoint good --top-p 1.5
bad 2 '--out;missing' "$EXPAR" export --checkpoint good
bad 2 '--dtype;int4' "$EXPAR" export --checkpoint good --out case/x --dtype int4
bad 2 '--tokenizer' "$EXPAR" tokenize words.txt
bad 2 '--decode;--out' "$EXPAR" tokenize --tokenizer tok --decode --out x.bin words.txt
bad 2 'no files' "$EXPAR" tokenizer-train --out case/t
bad 2 '--vocab' "$EXPAR" tokenizer-train words.txt --vocab 10 --out case/t
bad_train 2 'training.stepz;training.steps' --training.stepz 3
bad_train 2 'training.steps;many' --training.steps many
bad_train 2 'training.steps;value' --training.steps
bad_train 2 'stray' stray
bad_train 2 'checkpoint.no_enable' --checkpoint.no_enable=3
bad_train 2 'training.local_batch_size' --training.local_batch_size 0
bad_train 2 'tensor_parallel_degree;not supported' --parallelism.tensor_parallel_degree 2
bad_train 2 'pipeline_parallel_degree;not supported' --parallelism.pipeline_parallel_degree=2
bad_train 2 'expert_parallel_comm_backend;use_deepep' --moe.use_deepep --parallelism.expert_parallel_comm_backend standard
bad_train 2 'initial_load_in_hf' --checkpoint.initial_load_in_hf --checkpoint.no_initial_load_model_only
bad_train 2 'top_k;num_experts' --moe.top_k 9
bad_train 2 'head_dim' --model.head_dim 15
bad_train 2 'n_kv_heads' --model.n_heads 3 --model.n_kv_heads 2
bad_ranks 0 2 'NGPU;0'
bad_ranks -1 2 'NGPU;-1'
bad_ranks abc 2 'NGPU;abc'
bad_ranks 70000 2 'NGPU;70000'
bad_ranks 3 2 'expert_parallel_degree 2;3' --parallelism.expert_parallel_degree 2
bad_ranks 3 2 'expert_parallel_degree 3;8 experts' --parallelism.expert_parallel_degree 3
bad_ranks 2 2 'expert_parallel_degree 4;2' --parallelism.expert_parallel_degree 4
bad_ranks 2 2 'global_batch_size 7' --training.global_batch_size 7
bad_ranks 4 2 'data_parallel_shard_degree' --parallelism.data_parallel_shard_degree 3
bad_ranks 4 2 'data_parallel_replicate_degree' --parallelism.data_parallel_replicate_degree 3

# ---- tokenizers -----------------------------------------------------------------------------

tokenizer() { # CODE WORDS PREP
    PREP="cp -r tok case/tok && $3"
    bad "$1" "$2" "$EXPAR" tokenize --tokenizer case/tok words.txt
}
tokenizer 1 'tokenizer.json;line' 'echo "{\"model\": " > case/tok/tokenizer.json'
tokenizer 1 'tokenizer.json' ': > case/tok/tokenizer.json'
tokenizer 1 'tokenizer.json' 'head -c 3000 tok/tokenizer.json > case/tok/tokenizer.json'
tokenizer 1 'tokenizer.json;WordPiece' 'sed -i "s/\"BPE\"/\"WordPiece\"/" case/tok/tokenizer.json'
tokenizer 1 'vocab' 'echo "{\"model\": {\"type\": \"BPE\", \"merges\": []}}" > case/tok/tokenizer.json'
tokenizer 1 'model.merges' 'sed -i "s/\"merges\": *\[/&\"Qq zZ\",/" case/tok/tokenizer.json'
tokenizer 1 'tokenizer.json' 'head -c 200000 /dev/zero | tr "\0" "[" > case/tok/tokenizer.json'
tokenizer 1 'tokenizer.json' 'rm case/tok/tokenizer.json'
tokenizer 1 'tokenizer.json' 'head -c 100000 /dev/urandom > case/tok/tokenizer.json'
bad 1 'nowhere' "$EXPAR" tokenize --tokenizer nowhere words.txt
bad 1 'nothing.txt' "$EXPAR" tokenize --tokenizer tok nothing.txt
bad 1 'nothing.txt' "$EXPAR" tokenizer-train nothing.txt --out case/t
bad 1 'words.txt;token id' "$EXPAR" tokenize --tokenizer tok --decode words.txt
bad_train 2 'hf_assets_path' --training.dataset text --training.dataset_path words.txt
bad_train 1 'hf_assets_path;assets/tokenizer;scripts/prepare_text.sh;expar tokenizer-train' --training.dataset text --training.dataset_path words.txt \
    --model.hf_assets_path assets/tokenizer

# ---- Hugging Face folders and safetensors ----------------------------------------------------

weights() { # CODE WORDS PREP
    PREP="cp -r hf case/hf && $3"
    bad "$1" "$2" "$EXPAR" eval --hf case/hf --tokens tokens.bin --seq 16 --rows 2
}
one='{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
weights 1 'model.safetensors' 'truncate -s -10 case/hf/model.safetensors'
weights 1 'model.safetensors' ': > case/hf/model.safetensors'
weights 1 'model.safetensors' 'head -c 5 hf/model.safetensors > case/hf/model.safetensors'
weights 1 'model.safetensors' 'echo junk >> case/hf/model.safetensors'
weights 1 'case/hf;model.norm.weight' 'sed -i s/model.norm.weight/model.norm.weighx/ case/hf/model.safetensors'
weights 1 'case/hf;I32' 'sed -i s/\"F32\"/\"I32\"/ case/hf/model.safetensors'
weights 1 'model.safetensors;overlap' 'st case/hf/model.safetensors "$one,\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}" 12'
weights 1 'model.safetensors' 'st case/hf/model.safetensors "$one,\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[12,20]}}" 20'
weights 1 'model.safetensors' 'st case/hf/model.safetensors "$one}" 8 999999999999'
weights 1 'model.safetensors' 'st case/hf/model.safetensors "$one,\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}" 16'
weights 1 'model.safetensors' 'st case/hf/model.safetensors "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,8]}}" 8'
weights 1 'case/hf;513' 'sed -i "s/\"vocab_size\": 512/\"vocab_size\": 513/" case/hf/config.json'
weights 1 'config.json' 'echo garbage > case/hf/config.json'
weights 1 'config.json' 'echo "[1, 2]" > case/hf/config.json'
weights 1 'config.json;hidden_size' 'echo "{\"model_type\": \"qwen3_moe\"}" > case/hf/config.json'
weights 1 'config.json;llama' 'sed -i "s/\"model_type\": \"[a-z0-9_]*\"/\"model_type\": \"llama\"/" case/hf/config.json'
weights 1 'config.json' 'rm case/hf/config.json'
weights 1 'model.safetensors' 'rm case/hf/model.safetensors'
weights 1 'model.safetensors.index.json' 'rm case/hf/model.safetensors; echo "{\"weight_map\": 3}" > case/hf/model.safetensors.index.json'
weights 1 'index.json' 'echo "{\"weight_map\": {\"lm_head.weight\": \"../../good/x\"}}" > case/hf/model.safetensors.index.json; rm case/hf/model.safetensors'
bad 1 'nowhere' "$EXPAR" eval --hf nowhere --tokens tokens.bin
bad_train 1 'nowhere' --job.dump_folder case/new --checkpoint.initial_load_path nowhere --checkpoint.initial_load_in_hf

# ---- data -----------------------------------------------------------------------------------

text() { # CODE WORDS FILE PREP
    PREP=$4
    bad_train "$1" "$2" --training.dataset text --training.dataset_path "$3" --model.hf_assets_path tok
}
text 1 'case/d.jsonl:2;JSON' case/d.jsonl '{ head -n 1 words.jsonl; echo "{not json"; } > case/d.jsonl'
text 1 'case/d.jsonl:3;text' case/d.jsonl '{ head -n 2 words.jsonl; echo "{\"body\": 1}"; } > case/d.jsonl'
text 1 'case/d.jsonl:1;text' case/d.jsonl 'echo "{\"text\": 5}" > case/d.jsonl'
text 1 'case/d.jsonl:1' case/d.jsonl 'echo "{\"text\": \"a\", \"text\": \"b\"}" > case/d.jsonl'
text 1 'case/d.json.gz' case/d.json.gz 'gzip -c words.jsonl | head -c 200 > case/d.json.gz'
text 1 'case/d.json.gz' case/d.json.gz 'head -c 3000 /dev/urandom > case/d.json.gz; printf "\37\213\10" | dd of=case/d.json.gz conv=notrunc status=none'
text 1 'no data;case/empty' case/empty 'mkdir case/empty'
text 1 'case/d.jsonl' case/d.jsonl ': > case/d.jsonl'
text 2 'row' case/d.jsonl 'head -n 1 words.jsonl > case/d.jsonl'
text 1 'no data;case/*.jsonl.gz' 'case/*.jsonl.gz' ':'
tokens() { # CODE WORDS FILE PREP
    PREP=$4
    bad_train "$1" "$2" --training.dataset_path "$3"
}
tokens 1 'nothing.bin' nothing.bin :
tokens 1 'case/d.bin;4' case/d.bin 'head -c 4001 tokens.bin > case/d.bin'
tokens 1 'case/d.bin;token' case/d.bin 'head -c 40000 /dev/urandom > case/d.bin'
tokens 2 'case/d.bin;row' case/d.bin 'head -c 40 tokens.bin > case/d.bin'
tokens 2 'row' case/d.bin ': > case/d.bin'
bad 1 'nothing.bin' "$EXPAR" eval --checkpoint good --tokens nothing.bin
PREP='head -c 40000 /dev/urandom > case/d.bin'
bad 1 'case/d.bin;token' "$EXPAR" eval --checkpoint good --tokens case/d.bin --seq 16
bad_train 2 'kind;parquet' --training.dataset parquet --model.hf_assets_path tok
bad_train 2 'dataset_path' --training.dataset_path=

# ---- checkpoints ----------------------------------------------------------------------------

newest=case/checkpoint/step-4
damaged() { # CODE WORDS PREP [OPTIONS...]
    local code=$1 words=$2
    PREP=$3
    shift 3
    bad_train "$code" "$words" "$@"
}
damaged 1 'step-4;rank-00000.safetensors' "truncate -s -100 $newest/rank-00000.safetensors"
damaged 1 'step-4;load_step;2' "printf x | dd of=$newest/rank-00000.safetensors bs=1 seek=30000 conv=notrunc status=none"
damaged 1 'step-4;rank-00000.safetensors' "rm $newest/rank-00000.safetensors"
damaged 1 'manifest.json' "truncate -s -50 $newest/manifest.json"
damaged 1 'manifest.json' "sed -i s/tokens_seen/tokens_saen/ $newest/manifest.json"
damaged 1 'manifest.json' "echo '{}' > $newest/manifest.json"
damaged 1 'step-99' ':' --checkpoint.load_step 99
damaged 2 'model.dim = 32;48' ':' --model.dim 48
damaged 2 'moe.num_experts;8;16' ':' --moe.num_experts 16
damaged 2 'vocab_size' ':' --model.vocab_size 600
damaged 1 'nowhere' ':' --job.dump_folder case/new --checkpoint.initial_load_path nowhere
damaged 2 'no part of a checkpoint' ':' --checkpoint.exclude_from_loading nothing
bad 1 'checkpoint;empty' "$EXPAR" generate --checkpoint empty
PREP="rm $newest/manifest.json case/checkpoint/step-2/manifest.json"
bad 1 'case' "$EXPAR" export --checkpoint case --out case/x
bad 1 'step-77' "$EXPAR" eval --checkpoint case --step 77 --tokens tokens.bin
bad 2 '--tokenizer' "$EXPAR" generate --checkpoint case --prompt hello

# ---- places that cannot be written ------------------------------------------------------------

damaged 1 'case/file' 'echo > case/file' --job.dump_folder case/file
damaged 1 'case/file' 'echo > case/file' --job.dump_folder case/file/inside
damaged 1 '/proc/expar' ':' --job.dump_folder /proc/expar
damaged 1 'metrics.jsonl' 'rm case/metrics.jsonl; mkdir case/metrics.jsonl'
damaged 1 'config.toml' 'rm case/config.toml; mkdir case/config.toml'
damaged 1 'case/ckpt' 'echo > case/ckpt' --checkpoint.folder ckpt
PREP='mkdir case/x; echo mine > case/x/notes.txt'
bad 2 'case/x;notes.txt' "$EXPAR" export --checkpoint good --out case/x
bad 1 '/proc' "$EXPAR" export --checkpoint good --out /proc/expar
bad 1 '/proc/expar' "$EXPAR" tokenizer-train words.txt --vocab 300 --out /proc/expar
bad 1 '/proc/x.bin' "$EXPAR" tokenize --tokenizer tok --out /proc/x.bin words.txt
bad 1 '/proc/x.npy' "$EXPAR" eval --checkpoint good --tokens tokens.bin --seq 16 --rows 2 --logits /proc/x.npy
bad 1 'standard output' sh -c '"$0" config tiny.toml > /dev/full' "$EXPAR"
bad 1 'standard output' sh -c '"$0" tokenize --tokenizer tok words.txt > /dev/full' "$EXPAR"
bad 1 'standard output' sh -c '"$0" eval --checkpoint good --tokens tokens.bin --seq 16 --rows 2 > /dev/full' "$EXPAR"

# ---- full disks -------------------------------------------------------------------------------

# A file system without room for the next checkpoint, where one may be mounted; a limit on the size
# of files everywhere.
small_disk() {
    mkdir -p disk && mount -t tmpfs -o size="$1" expar_e2e disk 2> /dev/null
}
full_disk() { # MODE
    rm -rf case && cp -r good case
    cp -r case/checkpoint disk/checkpoint
    rm -rf case/checkpoint && ln -s "$WORK/disk/checkpoint" case/checkpoint
    (cd disk && find . -type f -exec sha256sum {} + | sort) > before
    timeout "$LIMIT_S" "$EXPAR" train --job.config_file tiny.toml --job.dump_folder case \
        --training.steps 8 --job.threads_per_rank 1 --checkpoint.async_mode "$1" > out 2> err
    rc=$?
    what="full disk, $1"
    n_cases=$((n_cases + 1))
    [ $rc -eq 1 ] || complain "exit code $rc instead of 1"
    [ "$(wc -l < err)" -eq 1 ] || complain "more than one line"
    grep -q '^error: .*No space left on device' err || complain "no clear message"
    (cd disk && find . -type f -exec sha256sum {} + | sort) | cmp -s - before || complain "a checkpoint changed"
    rm -rf disk/*
}
bytes=$(du -sb good/checkpoint | cut -f1)
if small_disk $((bytes + bytes / 4)); then
    trap 'umount "$WORK/disk" 2> /dev/null; rm -rf "$WORK"' EXIT
    full_disk disabled
    full_disk async
    umount disk
else
    echo "SKIPPED: full disk on a small tmpfs (mounting is not allowed here); a limit on file sizes is tried instead"
fi
bad 1 'rank-00000.safetensors;too large' bash -c 'ulimit -f 40; exec "$@"' - "$EXPAR" train \
    --job.config_file tiny.toml --job.dump_folder case --training.steps 8 --job.threads_per_rank 1
bad 1 'safetensors;too large' bash -c 'ulimit -f 40; exec "$@"' - "$EXPAR" export --checkpoint good --out case/x

# ---- what fails while it runs -----------------------------------------------------------------

bad_train 1 'step ;stopped before the update' --optimizer.lr 1e6 --lr_scheduler.warmup_steps 0 --training.steps 200 \
    --optimizer.weight_decay 1 --training.max_norm 1e15 --checkpoint.interval 1000

diff -r good good.first || { echo "the run that cases start from changed"; n_failed=$((n_failed + 1)); }
echo "$n_cases cases, $n_failed complaints"
[ $n_failed -eq 0 ] && [ $n_cases -ge 60 ]
