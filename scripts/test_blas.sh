# Sourced by what runs the tests. OpenBLAS takes its plainest kernels, four times slower, on a CPU that is newer than it; the
# program expar mends that by itself, test programs are told here.
if [ -z "${OPENBLAS_CORETYPE+set}" ]; then
    if grep -qm1 '^flags.* avx512vl' /proc/cpuinfo 2>/dev/null; then
        export OPENBLAS_CORETYPE=SkylakeX
    elif grep -qm1 '^flags.* avx2' /proc/cpuinfo 2>/dev/null; then
        export OPENBLAS_CORETYPE=Haswell
    fi
fi
