#!/usr/bin/env bash
# Many inputs for every reader: million.sh [FUZZ [RUNS [TARGET...]]]. FUZZ is build/asan/bin/fuzz unless given; one line a reader.
set -u
fuzz=${1:-build/asan/bin/fuzz}
runs=${2:-1000000}
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- toml overrides hf_config tokenizer tokenizer_config model_eos encode jsonl gz zst token_file token_cache \
    safetensors index manifest metrics trace
export ASAN_OPTIONS=quarantine_size_mb=8:malloc_context_size=5:${ASAN_OPTIONS:-}
code=0
for target; do
    "$fuzz" "$target" --runs "$runs" || { echo "fuzz $target: FAILED"; code=1; }
done
exit $code
