#!/bin/sh
# run.sh FOLDER EXPAR: makes a Parquet file with DuckDB, takes the command out of expar's refusal and runs it.
set -u
folder=$1 expar=$2 here=$(cd "$(dirname "$0")" && pwd) source=$(cd "$(dirname "$0")/../../.." && pwd)
skip() {
    echo "SKIPPED: parquet pipe: $1"
    exit 77
}
fail() {
    echo "FAILED: $1"
    exit 1
}
command -v node >/dev/null && command -v npm >/dev/null || skip "node and npm are not installed"
package=@duckdb/node-api@1.5.6-r.1
mkdir -p "$folder"
cd "$folder" || exit 1
if [ "$(cat installed 2>/dev/null)" != "$package" ]; then
    echo '{"private": true}' >package.json
    timeout 200 npm install --no-audit --no-fund --ignore-scripts "$package" >npm.log 2>&1 ||
        skip "npm cannot install $package (see $folder/npm.log)"
    echo "$package" >installed
fi
# duckdb -c SQL, by the same engine
mkdir -p bin
printf '#!/bin/sh\nexec node "%s/duckdb.js" "%s" "$2"\n' "$here" "$folder" >bin/duckdb
printf '#!/bin/sh\nexec "%s" "$@"\n' "$expar" >bin/expar
chmod +x bin/duckdb bin/expar
PATH=$folder/bin:$PATH
tokenizer=$source/tests/fuzz/corpus/tokenizer
rm -rf tok && mkdir tok && cp "$tokenizer/small.json" tok/tokenizer.json && echo '{"eos_token": "<|endoftext|>"}' >tok/tokenizer_config.json
duckdb -c "COPY (SELECT 'document ' || i || ' \"of\" the words é' AS text, i AS id FROM range(500) t(i)) TO 'docs.parquet' (FORMAT parquet)" ||
    fail "duckdb cannot write Parquet"
i=0
while [ $i -lt 500 ]; do
    printf '{"text": "document %d \\"of\\" the words é"}\n' $i
    i=$((i + 1))
done >docs.jsonl
expar tokenize --tokenizer tok --out want.bin docs.jsonl 2>expar.log || fail "tokenize docs.jsonl"
expar tokenize --tokenizer tok --out no.bin docs.parquet 2>refusal.log && fail "docs.parquet was read"
command=$(sed -n 's/.*for example \(duckdb .* --out ids\.bin -\).*/\1/p' refusal.log | sed 's/--tokenizer DIR/--tokenizer tok/')
[ -n "$command" ] || fail "no command in: $(cat refusal.log)"
rm -f ids.bin
sh -c "$command" 2>expar.log || fail "$command: $(cat expar.log)"
cmp want.bin ids.bin || fail "other tokens than those of the JSON lines"
echo "the pipe works: $command"
