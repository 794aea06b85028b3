#!/usr/bin/env bash
# Train. Installs and builds what is missing.
#
#   ./run_train.sh                                   a small MoE with expert parallelism on real text, a rank a core
#   NGPU=8 ./run_train.sh my.toml --training.steps 100          the same: CONFIG_FILE=my.toml NGPU=8 ./run_train.sh ...
#
# environment: NGPU         ranks (default with CONFIG_FILE: all GPUs, without GPUs 1; else the cores, at most 8, a power of two)
#              CONFIG_FILE  the TOML file (default configs/debug_moe.toml)
#              LOG_RANK     whose messages to show (default 0)
# arguments:   --section.key value overrides; ./run_train.sh --help lists the keys
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
called_from=$PWD
cd "$here"

scripts/setup.sh
scripts/build.sh release
expar=$here/build/release/bin/expar

for arg in "$@"; do
    case $arg in
    -h | --help) exec "$expar" train --help ;;
    esac
done

case ${1:-} in
"" | -*) ;;
*) # the first word is the file, as for expar train
    CONFIG_FILE=$1
    shift
    ;;
esac
if [ -n "${CONFIG_FILE:-}" ]; then
    cd "$called_from"
    # A path that only exists from here (configs/...) is meant from here.
    if [ ! -e "$CONFIG_FILE" ] && [ -e "$here/$CONFIG_FILE" ]; then
        cd "$here"
    fi
    export CONFIG_FILE
    exec "$expar" train "$@"
fi

# The debug run: 16 rows a step, whatever the number of ranks.
cores=$(nproc)
ranks=1
while [ $((ranks * 2)) -le "$cores" ] && [ $ranks -lt 8 ]; do ranks=$((ranks * 2)); done
export NGPU=${NGPU:-$ranks} CONFIG_FILE=configs/debug_moe.toml
defaults=()
case $NGPU in
1 | 2 | 4 | 8 | 16)
    defaults=(--training.local_batch_size $((16 / NGPU)) --parallelism.expert_parallel_degree "$NGPU")
    ;;
esac
scripts/prepare_text.sh "$expar"
stopped=no
trap 'stopped=yes' INT TERM # the trainer finishes its step, saves and says so
"$expar" train "${defaults[@]}" "$@"
[ $stopped = no ] || exit 0

folder=outputs/debug_moe
case " $* " in *dump_folder*) exit 0 ;; esac
if ls -d $folder/checkpoint/step-* >/dev/null 2>&1; then
    echo
    echo "A sample of what it has learned (expar generate --checkpoint $folder --prompt \"And God said\"):"
    echo
    "$expar" generate --checkpoint $folder --prompt "And God said" --max-tokens 120 --temperature 0.7 --seed 1
    cat <<TXT

What to try next:
  build/release/bin/expar generate --checkpoint $folder --prompt "In the beginning"
  ./run_train.sh --training.steps 1200          # train on from the last checkpoint
  ./run_train.sh --job.dump_folder outputs/other --optimizer.lr 1e-3          # another run beside this one
  build/release/bin/expar export --checkpoint $folder --out my_model          # for Hugging Face transformers
  build/release/bin/expar config configs/debug_moe.toml          # every setting of this run
TXT
fi
