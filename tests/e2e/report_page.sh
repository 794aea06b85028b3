#!/usr/bin/env bash
# The pages of expar report in a headless Chromium. SHOTS=FOLDER keeps pictures of them.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/report_runs.sh"

command -v python3 > /dev/null || { echo "skipped: python3 drives the browser, and is not here"; exit 77; }
export PYTHONPATH=$SOURCE/tests/e2e/browser PYTHONDONTWRITEBYTECODE=1
python3 -c "import sys, chromium; sys.exit(chromium.find() is None)" || { echo "skipped: no chromium here (scripts/setup.sh --tests installs it on Debian)"; exit 77; }
timeout 100 python3 -c "import chromium; chromium.Browser().__exit__()" > start.log 2>&1 || { echo "skipped: chromium does not start here"; tail -n 3 start.log; exit 77; }

make_runs
make_long long 100000
python3 "$SOURCE/tests/e2e/browser/report_page.py" "$EXPAR" one restarted lr-1e-3,lr-3e-3,lr-1e-2 long ${SHOTS:+"$SHOTS"} || fail "a page"
echo "pages: charts, tips, controls, no requests, no complaints"
