#!/usr/bin/env bash
# 64 processes start and stop cleanly; a rank that never arrives is named by those that wait for it.
. "$(dirname "$0")/lib.sh"
times=2
[ "$LONG" = 1 ] && times=20
for ((i = 1; i <= times; i++)); do
    began=$(now_ms)
    LIMIT=60 launch 64 start-$i "$START_STOP"
    expect_ok 64 start-$i
    [ "$(grep -c '^64 ranks' start-$i/all.log)" = 1 ] || fail "start-$i: $(tail -n 3 start-$i/all.log)"
    [ -z "$(ls -A "$WORK" | grep expar-ranks)" ] || fail "marks are left behind"
    echo "start $i of $times: 64 ranks in $(($(now_ms) - began)) ms"
done

cat > late.sh <<'SH'
[ "$OMPI_COMM_WORLD_RANK" = 2 ] && exec sleep 60
exec "$@"
SH
began=$(now_ms)
START_TIMEOUT=2 LIMIT=30 launch 4 absent bash "$WORK/late.sh" "$START_STOP" &
mpirun=$!
sleep 1
wait_ranks absent 8 0 1 3
took=$(($(now_ms) - began))
kill "$(cat absent/pid.2)"
wait $mpirun
for r in 0 1 3; do
    [ "$(cat absent/rc.$r)" = 1 ] || fail "rank $r exited with $(cat absent/rc.$r)"
    grep -q "rank 2 did not arrive within 2 s" "absent/err.$r" || fail "rank $r does not name rank 2"
done
last=$(grep '^error: ' absent/all.log | tail -n 1)
[[ $last == "error: init: rank 2 did not arrive"* ]] || fail "the last line is not the root cause: $last"
echo "absent: $took ms: $last"

# absentee NAME COMMAND...: rank 2 fails before it is connected; the others do not wait for the time limit of 300 s. Rank 3
# starts when all has happened.
cat > absentee.sh <<'SH'
[ "$OMPI_COMM_WORLD_RANK" = 2 ] && exec "$EXPAR" train --no.such_key 1
[ "$OMPI_COMM_WORLD_RANK" = 3 ] && sleep 2
exec "$@"
SH
absentee() {
    local name=$1 began r
    shift
    began=$(now_ms)
    LIMIT=90 launch 4 "$name" bash "$WORK/absentee.sh" "$@"
    for r in 0 1 3; do
        [ "$(cat "$name/rc.$r")" = 1 ] || fail "$name: rank $r exited with $(cat "$name/rc.$r")"
        grep -q "^error: .*rank 2 gave up before the ranks were connected: .*no.such_key" "$name/err.$r" ||
            fail "$name: rank $r does not say what rank 2 met"
    done
    [ $(($(now_ms) - began)) -lt 60000 ] || fail "$name: took $(($(now_ms) - began)) ms"
    [ -z "$(find "$WORK" -name '.expar-ranks-*')" ] || fail "$name: marks are left behind"
    echo "$name: $(($(now_ms) - began)) ms"
}
absentee absentee-tmp env START_TIMEOUT=300 "$START_STOP"
absentee absentee-folder "$EXPAR" train --job.config_file "$HERE/../../configs/debug_moe.toml" --job.dump_folder "$WORK/run"
echo "ok: rendezvous"
