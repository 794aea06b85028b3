#!/bin/bash
# What expert parallelism costs: a training step at EP = GPUs against EP 1 on the same GPUs, one process a GPU, in turns.
#   bench/gpu_ep_cost.sh BUILD_FOLDER [OUTPUT_FOLDER]
# BUILD_FOLDER may come from another machine (cmake --preset cuda -DXP_BUNDLE_DEPS=ON): only bin/ and lib/ are used, and configs/.
# LAYERS (8) layers of the rank slice of Qwen3-30B-A3B, 16 experts a rank, 4 x 4096 tokens a GPU. PARTS, PAIRS (2) runs of each side:
#   spread modulo  load balance forced
#   natural        the router's own choice, kept balanced by NATURAL (an auxiliary loss); the load of the last step is printed, because a
#                  rank whose experts get more rows than the other's makes that one wait whatever the exchange costs
#   collapsed      the router's own choice on random tokens without an auxiliary loss: within ten steps all tokens go to the same experts
#   top_k          spread with top-2
#   copies         spread, every row to another rank sent five times (moe_send_copies): what a rank of EP 8 sends
#   standard       spread over NCCL all-to-all
#   old            spread with expert_parallel_overlap = false
#   deep           spread, all 48 layers
#   one            spread, one GPU alone beside EP 1 on all
#   slow           the same with NCCL kept from peer access and shared memory (NCCL_P2P_DISABLE, NCCL_SHM_DISABLE): what gradients cost over a
#                  slow path, to compare with `expar plan`'s figure for that rate
#   whole          all of 10B-A1B, EP = GPUs, 8 x 4096 tokens a GPU, the router's own choice as in `natural`
#   nodes          spread, hierarchical between GPUs that count as nodes of their own (process namespaces; root), with the exchange beside
#                  GEMMs and without, beside all-to-all: the same bits, exposed exchange a layer
#   skewed         `expar bench ep`: rows of a skewed routing beyond capacity against the same number of rows balanced
# Each line: median tokens/s of a GPU over the last steps, range, exposed exchange a layer of the traced step. Exit code 0: all ran.
set -u
build=${1:?usage: gpu_ep_cost.sh BUILD_FOLDER [OUTPUT_FOLDER]}
out=${2:-$(mktemp -d)}
parts=${PARTS:-spread modulo natural top_k copies standard one deep}
mkdir -p "$out"
build=$(cd "$build" && pwd)
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 2
summary=$out/ep_cost.txt
: > "$summary"
. bench/gpu_common.sh
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
n_gpus=${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)}
tokens=$work/tokens.bin
python3 - "$tokens" << 'PY'
import array, random, sys
random.seed(1)
array.array("I", (random.randrange(2048) for _ in range(2000000))).tofile(open(sys.argv[1], "wb"))
PY
forced=(--debug.moe_force_load_balance --debug.moe_force_load_balance_mode)
own=(--debug.no_moe_force_load_balance)
read -r -a natural <<< "${NATURAL:---moe.aux_loss_coeff 0.1}"

# train NAME RANKS STEPS OPTIONS...: one run, its line. CONFIG: of another model; LAUNCH: what starts the ranks instead of expar itself
train() {
    local name=$1 ranks=$2 steps=$3
    shift 3
    rm -rf "$work/run"
    # shellcheck disable=SC2086
    NGPU=$ranks timeout -k 3 "${LIMIT:-60}" ${LAUNCH:-} "$build/bin/expar" train --job.config_file "${CONFIG:-configs/rank_slice_30b_a3b.toml}" --training.dataset tokens \
        --training.dataset_path "$tokens" --training.steps "$steps" --comm.train_timeout_seconds 15 --metrics.log_freq 1 --job.dump_folder "$work/run" \
        --profiling.enable_profiling --profiling.profile_freq $((steps - 3)) "$@" > "$out/$name.txt" 2>&1 || {
        fail "$name: $(grep -m1 '^error' "$out/$name.txt" | cut -c1-200)"
        return 1
    }
    cp "$work/run/metrics.jsonl" "$out/$name.jsonl"
    local trace=$work/run/traces/step-$((steps - 3))-rank-0.json exposed=
    [ -e "$trace" ] && "$build/bin/expar" trace summary "$trace" > "$out/$name.trace.txt" && exposed=$(grep '^exchange exposed' "$out/$name.trace.txt")
    python3 - "$out/$name.jsonl" "$name" "$steps" "$exposed" << 'PY' | tee -a "$summary"
import hashlib, json, statistics, sys
rows, name, steps = [json.loads(line) for line in open(sys.argv[1])], sys.argv[2], int(sys.argv[3])
rows = [r for r in rows if "loss" in r]
late = [r["tps"] for r in rows if r["step"] > steps - 8 and r["step"] != steps - 3]
bits = hashlib.md5(repr([(r["loss"], r["grad_norm"]) for r in rows]).encode()).hexdigest()[:8]
load, share = rows[-1].get("moe_load_max_over_mean"), rows[-1].get("moe_load_busiest_rank_share")
loads = "" if not load else f"; busiest expert {max(load):.2f} of the mean" + (f", busiest rank {100 * max(share):.0f} %" if share else "")
print(f"{name:18s} {statistics.median(late):9.0f} tok/s ({min(late):.0f} to {max(late):.0f}), {rows[-1]['memory_gib']:.2f} GiB, bits {bits}{loads}")
if sys.argv[4]:
    print(f"{'':18s} {sys.argv[4]}")
PY
}
# ratio NAME A B: the medians of the runs A_i over those of B_i
ratio() {
    python3 - "$@" "$summary" << 'PY' | tee -a "$summary"
import re, statistics, sys
name, a, b, text = sys.argv[1], sys.argv[2], sys.argv[3], open(sys.argv[4]).read()
rate = lambda side: [float(x) for x in re.findall(rf"^{re.escape(side)}_\d+ +(\d+) tok/s", text, re.M)]
if rate(a) and rate(b):
    print(f"== {name}: {100 * statistics.mean(rate(a)) / statistics.mean(rate(b)):.1f} % ({statistics.mean(rate(a)):.0f} of {statistics.mean(rate(b)):.0f})")
PY
}
ep() { echo --model.flavor 30B-A3B-deepep --parallelism.expert_parallel_degree "$1" --moe.num_experts $((16 * $1)); }
# compare NAME STEPS OPTIONS...: EP = GPUs beside EP 1
compare() {
    local name=$1 steps=$2 i
    shift 2
    for ((i = 1; i <= ${PAIRS:-2}; i++)); do
        # shellcheck disable=SC2046
        train "${name}_ep${n_gpus}_$i" "$n_gpus" "$steps" $(ep "$n_gpus") "$@"
        # shellcheck disable=SC2046
        train "${name}_ep1_$i" "$n_gpus" "$steps" $(ep 1) "$@" ${EP1_OPTIONS:-}
    done
    ratio "$name: EP $n_gpus of EP 1" "${name}_ep$n_gpus" "${name}_ep1"
}
eight=(--model.n_layers "${LAYERS:-8}")
for part in $parts; do
    case $part in
    spread | modulo) compare "$part" 14 "${eight[@]}" "${forced[@]}" "$part" ;;
    natural) compare natural "${NATURAL_STEPS:-40}" "${eight[@]}" "${own[@]}" "${natural[@]}" ;;
    collapsed) compare collapsed 14 "${eight[@]}" "${own[@]}" ;;
    top_k) compare top_k 14 "${eight[@]}" "${forced[@]}" spread --moe.top_k 2 ;;
    copies) EP1_OPTIONS="--debug.moe_send_copies 1" compare copies 14 "${eight[@]}" "${forced[@]}" spread --debug.moe_send_copies 5 ;;
    standard) compare standard 14 "${eight[@]}" "${forced[@]}" spread --parallelism.expert_parallel_comm_backend standard ;;
    old) compare old 14 "${eight[@]}" "${forced[@]}" spread --parallelism.expert_parallel_overlap false ;;
    deep) PAIRS=1 compare deep 10 --model.n_layers 48 "${forced[@]}" spread ;;
    one)
        for ((i = 1; i <= ${PAIRS:-2}; i++)); do
            # shellcheck disable=SC2046
            train "one_gpu_$i" 1 14 $(ep 1) "${eight[@]}" "${forced[@]}" spread
            # shellcheck disable=SC2046
            train "all_gpus_$i" "$n_gpus" 14 $(ep 1) "${eight[@]}" "${forced[@]}" spread
        done
        ratio "EP 1: $n_gpus GPUs of one alone" all_gpus one_gpu
        ;;
    slow)
        # shellcheck disable=SC2046
        LIMIT=120 NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 train slow_gpus_1 "$n_gpus" 11 $(ep 1) "${eight[@]}" "${forced[@]}" spread --comm.train_timeout_seconds 60
        # shellcheck disable=SC2046
        train fast_gpus_1 "$n_gpus" 11 $(ep 1) "${eight[@]}" "${forced[@]}" spread
        ratio "EP 1: NCCL on a slow path, of the usual one" slow_gpus fast_gpus
        ;;
    whole)
        CONFIG=configs/qwen3_10b_a1b_deepep.toml LIMIT=150 train whole "$n_gpus" 14 --parallelism.expert_parallel_degree "$n_gpus" --training.local_batch_size 8 \
            --checkpoint.no_enable "${own[@]}" "${natural[@]}"
        ;;
    nodes)
        if ! unshare --pid --fork --mount-proc true 2> /dev/null; then
            say "nodes: skipped, process namespaces are not allowed here"
            continue
        fi
        launch="mpirun --mca btl tcp,self -n $n_gpus unshare --pid --fork --mount-proc"
        for backend in hierarchical a2a; do
            # shellcheck disable=SC2046
            LAUNCH=$launch train "nodes_${backend}_beside" "$n_gpus" 11 $(ep "$n_gpus") "${eight[@]}" "${forced[@]}" spread --deepep.transport $backend
            # shellcheck disable=SC2046
            LAUNCH=$launch train "nodes_${backend}_alone" "$n_gpus" 11 $(ep "$n_gpus") "${eight[@]}" "${forced[@]}" spread --deepep.transport $backend \
                --parallelism.expert_parallel_overlap false
        done
        ;;
    skewed)
        for routing in skewed random; do
            NGPU=$n_gpus timeout -k 3 60 "$build/bin/expar" bench ep --tokens 16384 --transport p2p --routing $routing --backward --seconds 0.3 \
                > "$out/skewed_$routing.txt" 2>&1 || fail "bench ep, $routing: $(grep -m1 '^error' "$out/skewed_$routing.txt")"
            grep -E "^ *$n_gpus +16384" "$out/skewed_$routing.txt" | tee -a "$summary"
        done
        ;;
    *) fail "no part $part" ;;
    esac
done
exit $failed
