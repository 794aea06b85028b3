# Helpers of the tests of ranks as processes: sourced, with the programs' paths in the environment.
set -u
if [ -z "${MPIRUN:-}" ] || ! command -v "$MPIRUN" > /dev/null; then
    echo "SKIP: no mpirun here, or built without MPI; install libopenmpi-dev and openmpi-bin and build again"
    exit 77
fi
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LONG=${XP_TEST_LONG:-0}
WORK=$(mktemp -d "${TMPDIR:-/tmp}/expar_dist.XXXXXX")
export TMPDIR=$WORK
cleanup() {
    # A stopped or forgotten rank would outlive the test: each wrote down its number.
    for pid in "$WORK"/*/pid.*; do
        [ -f "$pid" ] && kill -KILL "$(cat "$pid")" 2> /dev/null
    done
    rm -rf "$WORK"
}
trap cleanup EXIT
cd "$WORK" || exit 1
unset NGPU CONFIG_FILE LOG_RANK
[ "$(id -u)" -eq 0 ] && export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

fail() {
    echo "FAILED: $*"
    for log in */all.log; do
        [ -f "$log" ] && { echo "--- $log"; tail -n 30 "$log"; }
    done
    exit 1
}

# launch N FOLDER COMMAND...: run N ranks; FOLDER gets all.log, and rc.RANK, pid.RANK, err.RANK of each.
#   --enable-recovery  without it mpirun ends all ranks as soon as one is gone, before they can say why. With it mpirun itself
#                      exits with 0 whatever the ranks do, which is why each rank's exit code is written down.
#   --oversubscribe    more ranks than cores
# mpirun is ended after LIMIT seconds, and LINGER (10) seconds after its last rank: it may outlive its ranks (Open MPI 4.1: "PMIX
# ERROR: UNREACHABLE").
launch() {
    local n=$1 folder=$2 pid gone=0 r
    shift 2
    mkdir -p "$folder"
    timeout -k 5 "${LIMIT:-120}" "$MPIRUN" ${XP_MPIRUN_ARGS:-} --oversubscribe --bind-to none --enable-recovery -n "$n" \
        bash "$HERE/rank.sh" "$WORK/$folder" "$@" > "$folder/all.log" 2>&1 < /dev/null &
    pid=$!
    while kill -0 "$pid" 2> /dev/null; do
        for ((r = 0; r < n; r++)); do [ -s "$folder/rc.$r" ] || break; done
        [ "$r" -lt "$n" ] || gone=$((gone + 1))
        if [ "$gone" -eq $((10 * ${LINGER:-10})) ]; then
            echo "note: $folder: mpirun outlives its ranks and is ended"
            kill -TERM "$pid" 2> /dev/null # timeout passes it on, and KILL 5 s later
        fi
        sleep 0.1
    done
    wait "$pid"
}
# All N ranks must have exited with 0.
expect_ok() {
    local n=$1 folder=$2 r
    for ((r = 0; r < n; r++)); do
        [ "$(cat "$folder/rc.$r" 2> /dev/null)" = 0 ] ||
            fail "$folder: rank $r of $n exited with $(cat "$folder/rc.$r" 2> /dev/null || echo nothing)"
    done
}
now_ms() {
    date +%s%3N
}
# wait_ranks FOLDER SECONDS RANK...: until these ranks have ended; fails when they have not in time.
wait_ranks() {
    local folder=$1 deadline=$(($(now_ms) + $2 * 1000)) r
    shift 2
    for r in "$@"; do
        until [ -s "$folder/rc.$r" ]; do
            [ "$(now_ms)" -lt "$deadline" ] || fail "$folder: rank $r has not ended in time"
            sleep 0.05
        done
    done
}
