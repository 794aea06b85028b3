#!/bin/bash
# The PyTorch package on GPUs: its tests with the torch of this machine, its ops beside the C benches, TorchTitan with it.
#   bench/gpu_python.sh BUILD_FOLDER [OUTPUT_FOLDER]
# BUILD_FOLDER may come from another machine (cmake --preset cuda -DXP_BUNDLE_DEPS=ON): only bin/ and lib/ are used.
# PARTS="tests ops exchange titan" chooses (titan needs TORCHTITAN, see peer_torchtitan.py); exit code 0: everything that ran was right.
set -u
build=${1:?usage: gpu_python.sh BUILD_FOLDER [OUTPUT_FOLDER]}
out=${2:-$(mktemp -d)}
parts=${PARTS:-tests ops exchange${TORCHTITAN:+ titan}}
mkdir -p "$out"
build=$(cd "$build" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
summary=$out/summary.txt
: > "$summary"
. "$here/gpu_common.sh"
export EXPAR_LIBRARY=$build/lib EXPAR_BUILD=$build PYTHON=${PYTHON:-python3} PYTHONPATH=$here/../python
gpus=$(nvidia-smi --list-gpus 2> /dev/null | wc -l)
say "$("$PYTHON" -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())') x $gpus"

if want tests; then
    for file in "$here"/../tests/python/test_*.py; do
        run "$(basename "$file" .py)" 200 bash "$here/../tests/python/run.sh" "$file" -v
        tail -1 "$out/$(basename "$file" .py).txt" | tee -a "$summary"
    done
fi
if want ops; then
    # The public fused activation beside Triton and torch.compile in one process: exit code 1 when it is not the fastest.
    run silu 100 "$PYTHON" "$here/peer_silu_gate_prob.py"
    grep -E '^(copy|silu_gate_prob.*: expar)' "$out/silu.txt" | tee -a "$summary"
    run python_ops 100 "$PYTHON" "$here/python_ops.py" && cat "$out/python_ops.txt" | tee -a "$summary"
    run checkop 100 "$build/bin/checkop" --device cuda --bench --op 'silu*'
    grep -E '16384' "$out/checkop.txt" | cut -c1-160 | tee -a "$summary"
    run grouped_gemm 100 "$build/bin/bench_grouped_gemm" --repeats 31
    grep -E '^(forward|wgrad)  .* 1536x2048' "$out/grouped_gemm.txt" | grep -E ' 16 x 16384|128 x   256' | tee -a "$summary"
fi
if want exchange && [ "$gpus" -gt 1 ]; then
    run python_exchange 100 "$PYTHON" -m torch.distributed.run --nproc-per-node 2 "$here/python_ops.py" --only exchange --sms 24 &&
        cat "$out/python_exchange.txt" | tee -a "$summary"
    run bench_ep 100 "$build/bin/expar" bench ep --ranks 2 --tokens 16384 --dim 2048 --experts 32 --top-k 8 --sms 24 \
        --transport p2p --routing random --backward && grep p2p "$out/bench_ep.txt" | tee -a "$summary"
fi
if want titan && [ "$gpus" -gt 1 ]; then
    for backend in standard deepep expar; do
        run "titan_$backend" 200 "$PYTHON" -m torch.distributed.run --nproc-per-node 2 "$here/peer_torchtitan.py" --layers 8 \
            --experts 32 --backend $backend --routing natural
        grep RESULT "$out/titan_$backend.txt" | tee -a "$summary"
    done
fi
exit $failed
