#!/usr/bin/env bash
# Refuse copies of other projects' files that are not the ones their README names. usage: scripts/check_third_party.sh
set -euo pipefail
cd "$(dirname "$0")/../assets/report/third_party"
sha256sum --quiet --strict -c SHA256SUMS
[ "$(tr -d '\r' <LICENSE.uPlot)" = "$(sed -n '/^The MIT License/,/^-->/{/^-->/!p}' ../page.html)" ] || {
    echo "error: the licence in assets/report/page.html is not LICENSE.uPlot" >&2
    exit 1
}
echo "third party: ok"
