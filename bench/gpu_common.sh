# shellcheck shell=bash disable=SC2034,SC2154
# Sourced by the scripts that check a build folder on a GPU; they set build, out and summary before.
# say TEXT: to the screen and the summary, at once. want PART: whether PARTS asks for it. failed=1 after a failure.
failed=0
say() { printf '%s\n' "$*" | tee -a "$summary"; }
want() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
fail() {
    failed=1
    say "FAILED: $*"
}

# Links may not survive a transfer.
[ -e "$build/lib/libexpar.so.0" ] || cp "$build"/lib/libexpar.so.0.* "$build/lib/libexpar.so.0"
chmod +x "$build"/bin/* 2> /dev/null

# cuDNN and cuBLASLt from Python packages, where the loader does not find them by itself.
for library in libcudnn.so.9 libcublasLt.so.13; do
    ldconfig -p 2> /dev/null | grep -q "$library" && continue
    found=$(find /usr/local/cuda*/lib* $(python3 -c 'import sys; print(*[p for p in sys.path if p.endswith("packages")])' \
        2> /dev/null) -name "$library" 2> /dev/null | head -1)
    [ -n "$found" ] && export LD_LIBRARY_PATH="$(dirname "$found")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
done

# run NAME SECONDS COMMAND...: output to OUT/NAME.txt; a program that hangs in the driver ignores SIGTERM
run() {
    local name=$1 limit=$2 rc start=$SECONDS
    shift 2
    timeout -k 5 "$limit" "$@" > "$out/$name.txt" 2>&1
    rc=$?
    [ "$rc" = 0 ] || failed=1
    say "== $name: exit $rc, $((SECONDS - start)) s"
    [ "$rc" = 0 ] || tail -3 "$out/$name.txt" | cut -c1-300 | tee -a "$summary"
    return $rc
}
