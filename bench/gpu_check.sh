#!/bin/bash
# Check and time the GPU's ops: every case against the plain code, sanitizers on small cases, then the rates.
#   bench/gpu_check.sh BUILD_FOLDER [OUTPUT_FOLDER]
# BUILD_FOLDER may come from another machine (cmake --preset cuda -DXP_BUNDLE_DEPS=ON): only bin/ and lib/ are used.
# Whole output goes to OUTPUT_FOLDER (default: a new temporary one); a summary is printed last. About five minutes.
# PARTS="check full sanitize bench peer" chooses; exit code 0: everything that ran was right.
set -u
build=${1:?usage: gpu_check.sh BUILD_FOLDER [OUTPUT_FOLDER]}
out=${2:-$(mktemp -d)}
parts=${PARTS:-check full sanitize bench peer}
mkdir -p "$out"
build=$(cd "$build" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
summary=$out/summary.txt
: > "$summary"
. "$here/gpu_common.sh"
say "LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null | tee -a "$summary"

if want check; then
    run check 170 "$build/bin/checkop" --device cuda
    grep -A1 FAIL "$out/check.txt" | cut -c1-200 | head -40 | tee -a "$summary"
    tail -1 "$out/check.txt" | tee -a "$summary"
fi
if want full; then
    run full 120 "$build/bin/check_full"
    cut -c1-190 "$out/full.txt" | tee -a "$summary"
fi
if want sanitize; then
    # Side by side: each keeps one core busy and the GPU hardly. With --host-synchronized the hosts make the barriers, because a tool
    # that runs one kernel at a time would let a kernel that waits for another wait for ever.
    sanitize() {
        local name=$1 tool=$2
        shift 2
        run "$name" 240 compute-sanitizer --tool "$tool" --error-exitcode 9 "$@"
        return 0
    }
    for tool in memcheck racecheck initcheck; do
        sanitize "ops_$tool" "$tool" "$build/bin/checkop" --device cuda --quick --caps cudnn \
            ${SANITIZE_OP:+--op "$SANITIZE_OP"} > /dev/null &
        sanitize "ep_$tool" "$tool" "$build/bin/test_ep" --device cuda --ranks "${SANITIZE_RANKS:-3}" --host-synchronized --quick \
            > /dev/null &
    done
    wait
    # No kernel of this transport waits for another rank. After the others: it queues the most kernels.
    for tool in memcheck racecheck initcheck; do
        sanitize "hier_$tool" "$tool" "$build/bin/test_ep" --device cuda --ranks 4 --transport hierarchical --quick \
            > /dev/null &
    done
    wait
    for name in ops_memcheck ops_racecheck ops_initcheck ep_memcheck ep_racecheck ep_initcheck \
        hier_memcheck hier_racecheck hier_initcheck; do
        grep -E '^=========.*(Invalid|Race|hazard|Uninit)' "$out/$name.txt" | sort | uniq -c | sort -rn | head -4 |
            tee -a "$summary"
        summed=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/$name.txt" | tail -n 1)
        say "$name: $(grep -E 'cases, ' "$out/$name.txt" | tail -n 1 | cut -c1-100); $summed"
        # run's own verdict was given in another process
        grep -q ', 0 failed' "$out/$name.txt" || fail "$name: cases"
        case $summed in
        *": 0 errors" | *": 0 hazards displayed (0 errors, 0 warnings)") ;;
        *) fail "$name" ;;
        esac
    done
fi
if want bench; then
    run bench 140 "$build/bin/checkop" --device cuda --bench --repeat "${REPEAT:-0.15}"
    cut -c1-190 "$out/bench.txt" | tee -a "$summary"
    run bench_plain_attention 30 "$build/bin/checkop" --device cuda --bench --repeat 0.1 --op 'attention*' --caps cudnn
    cut -c1-190 "$out/bench_plain_attention.txt" | tee -a "$summary"
    run bench_any_order 30 "$build/bin/checkop" --device cuda --bench --repeat 0.1 --op 'attention_backward' \
        --caps deterministic
    cut -c1-190 "$out/bench_any_order.txt" | tee -a "$summary"
fi
if want peer; then
    run peer 80 python3 "$here/peer_silu_gate_prob.py"
    cat "$out/peer.txt" | cut -c1-160 | tail -16 | tee -a "$summary"
fi
echo "full output: $out"
exit $failed
