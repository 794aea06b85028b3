#!/usr/bin/env bash
# expar report: the HTML file, the terminal, the server; of a run, of a run that was resumed, of three runs. Its mistakes.
# The page in a browser: report_page.sh.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/report_runs.sh"

"$SOURCE/scripts/check_third_party.sh" > /dev/null || fail "assets/report/third_party"
make_runs
fails() { # exit code, text, arguments
    local wanted=$1 text=$2
    shift 2
    "$EXPAR" report "$@" > out.log 2> err.log
    rc=$?
    expect_rc "$wanted" "report $*: $(cat err.log)"
    [ "$(grep -c '^error: ' err.log)" = 1 ] || fail "report $*: not one error: $(cat err.log)"
    expect_text err.log "$text"
}

# Where a start resumed stands at its first step, and only there.
[ "$(grep -c resumed_step one/metrics.jsonl)" = 1 ] || fail "resumed_step is not there once"
[ "$(metric one 1 resumed_step)" = 0 ] || fail "a fresh start: resumed_step $(metric one 1 resumed_step)"
[ "$(metric restarted 11 resumed_step)" = 10 ] || fail "resumed at 10: $(metric restarted 11 resumed_step)"

"$EXPAR" report one --out one.html > out.log 2>&1 || fail "report: $(cat out.log)"
expect_text out.log "^one.html: 1 run, 40 steps, [0-9.]* MB$"
expect_no one.html '@[A-Z]*@'
[ "$(grep -oE 'https?://[^"]*' one.html | sort -u | tr '\n' ' ')" = "https://github.com/leeoniya/uPlot (v1.6.32) */ " ] ||
    fail "addresses in the page: $(grep -oE 'https?://[^"]*' one.html | sort -u)"
(cd one && "$EXPAR" report . > /dev/null) && [ -s one/report.html ] || fail "the default file"
"$EXPAR" report one/metrics.jsonl restarted --out two.html > out.log 2>&1 || fail "a metrics file: $(cat out.log)"

# A damaged line is left out, counted, and said.
mkdir damaged && head -n 30 one/metrics.jsonl > damaged/metrics.jsonl && echo '{"step": 31, "lo' >> damaged/metrics.jsonl
"$EXPAR" report damaged --out damaged.html > out.log 2> err.log || fail "a damaged line ends the report"
expect_text out.log "1 run, 30 steps"
expect_text err.log "^warning: damaged/metrics.jsonl: 1 damaged line left out (first: line 31)$"

# The terminal.
COLUMNS=70 LC_ALL=C "$EXPAR" report --text one > text.log || fail "--text"
for line in "^one: 40 steps, " "^loss: first [0-9.]*, last [0-9.]*, min [0-9.]* at step [0-9]*$" "^gradient norm: " "^learning rate: " \
    "^tokens per second of a rank: " "^ *step 1  *step 40$" "^time: .*forward and backward"; do
    expect_text text.log "$line"
done
! LC_ALL=C grep -q '[^ -~]' text.log || fail "--text in the C locale is not plain ASCII"
[ "$(grep -E '^[ 0-9.e+-]{9}\|' text.log | awk '{ if (length > n) n = length } END { print n }')" -le 70 ] || fail "--text is wider than 70 columns"
LC_ALL=C.UTF-8 "$EXPAR" report --text one restarted > text.log || fail "--text of two runs"
expect_text text.log "^resumed from step 10$"
expect_no text.log "$(printf '\033')"

# Mistakes.
fails 1 "there is no folder or file nowhere" nowhere
mkdir empty
fails 1 "empty has no metrics.jsonl: .*dump folder" empty
mkdir -p above/z above/other
cp one/metrics.jsonl above/z/
fails 1 "above has no metrics.jsonl; did you mean above/z?$" above
fails 1 "above/* has no metrics.jsonl; did you mean above/z?$" above/
: > empty/metrics.jsonl
fails 1 "empty/metrics.jsonl has no step yet" empty
fails 1 "not one of its .* lines is a step" tiny.toml
fails 1 "cannot create /no/such/folder/x.html" one --out /no/such/folder/x.html
cp one/metrics.jsonl before.jsonl
fails 2 "cannot write one/metrics.jsonl: another file is there" one --out one/metrics.jsonl
cmp one/metrics.jsonl before.jsonl || fail "the report is written over the run's metrics"
fails 2 "cannot write empty: a folder" one --out empty
"$EXPAR" report one --out one.html > out.log 2>&1 || fail "a page is not written again: $(cat out.log)"
fails 2 "name a dump folder"
fails 2 "give one" one --text --out x.html
fails 2 "70000" one --serve 70000

# The server: this machine only, three answers, bounded requests.
if command -v python3 > /dev/null; then
    python3 "$SOURCE/tests/e2e/browser/report_server.py" "$EXPAR" one || fail "the server"
fi
echo "reports: page, terminal, server, and their mistakes"
