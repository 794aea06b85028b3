#!/bin/bash
# Starts and failures of several GPUs: does every start of a run get through its first steps, and is a lost rank heard in time?
#   bench/gpu_ranks.sh BUILD_FOLDER [OUTPUT_FOLDER]
# BUILD_FOLDER may come from another machine (cmake --preset cuda -DXP_BUNDLE_DEPS=ON): only bin/ and lib/ are used, and configs/.
# PARTS="starts threads faults thread_faults" chooses; a part prints a line a run and a count at its end.
#   starts         STARTS (40) runs of `expar train` over all GPUs, one process a GPU, 3 steps of 8 layers of the rank slice; routing natural,
#                  spread and modulo in turn, expert_parallel_overlap auto, true and false
#   threads        THREAD_STARTS (20) of the same with job.ranks = "threads"
#   faults         a rank is killed, stopped (SIGSTOP) or fails in plan, dispatch, combine, reduce-scatter and all-gather; dispatch and combine
#                  REPEATS (5) times. Every survivor must end within 2 s (stopped: time limit + 2 s), name rank and phase, and exit with 1
#   thread_faults  the same for rank threads: a rank fails, or never comes
# HOWS ("kill stop memory") and PHASES choose among the faults; START_OPTIONS are further settings of the starts, EXPERTS (16 a rank) theirs.
# Exit code 0: all counts are full.
set -u
build=${1:?usage: gpu_ranks.sh BUILD_FOLDER [OUTPUT_FOLDER]}
out=${2:-$(mktemp -d)}
parts=${PARTS:-starts threads faults thread_faults}
mkdir -p "$out"
build=$(cd "$build" && pwd)
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 2
summary=$out/ranks_summary.txt
: > "$summary"
. bench/gpu_common.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
n_gpus=${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader | wc -l)}
limit=${LIMIT:-60}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2> /dev/null | sort | uniq -c | tee -a "$summary"

tokens=$work/tokens.bin
python3 - "$tokens" << 'PY'
import array, random, sys
random.seed(1)
array.array("I", (random.randrange(2048) for _ in range(400000))).tofile(open(sys.argv[1], "wb"))
PY

# left_behind: processes of this build that are still there, and files in /dev/shm that were not there when this script began
shm_files() { ls /dev/shm 2> /dev/null | grep -E 'expar|vader|ompi|pmix' | sort; }
shm_before=$(shm_files)
processes() { ps -eo pid=,args= | grep -F "$build/bin/" | grep -v grep | head -3; }
left_behind() {
    processes
    comm -13 <(printf '%s\n' "$shm_before") <(shm_files) | head -3
}

read -r -a start_options <<< "${START_OPTIONS:-}"
# start_runs NAME COUNT OPTIONS...
start_runs() {
    local name=$1 count=$2 i rc ok=0 began routing overlap
    shift 2
    for ((i = 0; i < count; i++)); do
        case $((i % 3)) in
        0) routing=(--debug.no_moe_force_load_balance) ;;
        1) routing=(--debug.moe_force_load_balance --debug.moe_force_load_balance_mode spread) ;;
        2) routing=(--debug.moe_force_load_balance --debug.moe_force_load_balance_mode modulo) ;;
        esac
        overlaps=(auto true false)
        overlap=${overlaps[$((i / 3 % 3))]}
        began=$(date +%s%3N)
        NGPU=$n_gpus timeout -k 5 "$limit" "$build/bin/expar" train --job.config_file configs/rank_slice_30b_a3b.toml \
            --model.n_layers "${LAYERS:-8}" --model.flavor 30B-A3B-deepep --moe.num_experts "${EXPERTS:-$((16 * n_gpus))}" \
            --parallelism.expert_parallel_degree "$n_gpus" --training.dataset tokens --training.dataset_path "$tokens" \
            --training.steps 3 --comm.train_timeout_seconds 20 --job.dump_folder "$work/run" \
            --parallelism.expert_parallel_overlap $overlap "${routing[@]}" "${start_options[@]}" "$@" > "$out/$name.txt" 2>&1
        rc=$?
        if [ $rc = 0 ] && grep -q 'step:  *3 ' "$out/$name.txt" && [ -z "$(left_behind)" ]; then
            ok=$((ok + 1))
        else
            say "$name $i: exit $rc; $(grep -m1 '^error' "$out/$name.txt" | cut -c1-200) $(left_behind)"
            cp "$out/$name.txt" "$out/${name}_failed.txt"
            pkill -KILL -f "$build/bin/expar" 2> /dev/null
        fi
        [ "$i" = 0 ] && say "$name 0: $(($(date +%s%3N) - began)) ms; $(grep -m1 'ranks:' "$out/$name.txt" | cut -c1-160)"
        rm -rf "$work/run"
    done
    say "$name: $ok of $count done"
    [ $ok = "$count" ] || failed=1
}
want starts && start_runs starts "${STARTS:-40}"
want threads && start_runs threads "${THREAD_STARTS:-20}" --job.ranks threads

# judge NAME HOW VICTIM LOG SURVIVORS: from the times of day in the log
judge() {
    python3 - "$@" << 'PY'
import re, sys
name, how, victim, log, survivors = sys.argv[1], sys.argv[2], int(sys.argv[3]), open(sys.argv[4]).read(), int(sys.argv[5])
falls = re.search(r"rank \d+ falls at ([\d.]+)", log)
ends = {int(r): float(t) for r, t in re.findall(r"rank (\d+) ends at ([\d.]+)", log) if int(r) != victim}
errors = [l for l in log.splitlines() if l.startswith("error: ")]
bound = 2.0 + (float(sys.argv[6]) if how in ("stop", "absent") else 0)
wrong = []
if not falls:
    wrong.append("the victim never came to the fault")
elif len(ends) < survivors:
    wrong.append(f"{len(ends)} of {survivors} survivors ended")
elif max(ends.values()) - float(falls.group(1)) > bound:
    wrong.append(f"the last survivor took {max(ends.values()) - float(falls.group(1)):.2f} s")
if not any(f"rank {victim}" in e for e in errors):
    wrong.append(f"nobody names rank {victim}")
phase = name.split()[2]
if not any(f"in {phase}" in e for e in errors):
    wrong.append(f"nobody names {phase}")
took = max(ends.values()) - float(falls.group(1)) if falls and ends else -1
print(f"{name}: {took:.2f} s; {errors[-1][:140] if errors else 'no error line'}{'; WRONG: ' + ', '.join(wrong) if wrong else ''}")
sys.exit(bool(wrong))
PY
}
export FAULT_DEVICE=${FAULT_DEVICE:-cuda} FAULT_TIMES=1 FAULT_TIMEOUT=2
phases=${PHASES:-plan dispatch combine reduce-scatter all-gather}
# fault_runs NAME HOWS: every phase, dispatch and combine REPEATS times
fault_runs() {
    local name=$1 hows=$2 how phase i n ok=0 count=0 log victim rc
    for how in $hows; do
        for phase in $phases; do
            n=1
            case $phase in dispatch | combine) n=${REPEATS:-5} ;; esac
            for ((i = 0; i < n; i++)); do
                victim=$((i % n_gpus)) log=$out/$name.txt
                count=$((count + 1))
                if [ "$name" = faults ]; then
                    timeout -k 2 30 mpirun --enable-recovery --bind-to none --oversubscribe -n "$n_gpus" "$build/bin/fault" "$phase" "$how" "$victim" \
                        > "$log" 2>&1 &
                    rc=$!
                    # a stopped process has to be killed for mpirun to end
                    if [ "$how" = stop ]; then
                        for ((w = 0; w < 200; w++)); do
                            grep -q "ends at" "$log" && break
                            sleep 0.1
                        done
                        sleep 0.3
                        ps -eo pid=,stat=,args= | awk -v name="$build/bin/fault" '$2 ~ /^T/ && index($0, name) {print $1}' | xargs -r kill -KILL
                    fi
                    wait $rc
                else
                    FAULT_THREADS=$n_gpus timeout -k 2 30 "$build/bin/fault" "$phase" "$how" "$victim" > "$log" 2>&1
                fi
                if judge "$name $how $phase $i" "$how" "$victim" "$log" $((n_gpus - 1)) $FAULT_TIMEOUT >> "$summary" && [ -z "$(processes)" ]; then
                    ok=$((ok + 1))
                else
                    tail -1 "$summary"
                    processes | tee -a "$summary"
                    cp "$log" "$out/${name}_failed.txt"
                    pkill -KILL -f "$build/bin/fault" 2> /dev/null
                fi
            done
        done
    done
    say "$name: $ok of $count right"
    [ $ok = $count ] || failed=1
}
want faults && fault_runs faults "${HOWS:-kill stop memory}"
want thread_faults && fault_runs thread_faults "memory absent"
say "whole: $SECONDS s; $([ $failed = 0 ] && echo "all right" || echo FAILED); output in $out"
exit $failed
