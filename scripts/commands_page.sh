#!/usr/bin/env bash
# Print docs/reference/commands.md from the program's own help. usage: scripts/commands_page.sh path/to/expar
set -euo pipefail
expar=${1:?usage: scripts/commands_page.sh path/to/expar}
echo "# Commands"
echo
echo "The help texts of the program, \`expar COMMAND --help\`. All keys of a configuration: [config.md](config.md). This page is generated:
\`scripts/commands_page.sh build/release/bin/expar > docs/reference/commands.md\`."
page() {
    echo
    echo "## $*"
    echo
    echo '```'
    "$expar" "${@:2}" --help | sed '/^keys:$/,$d' # all keys: config.md
    echo '```'
}
page expar
for command in $("$expar" --help | sed -n '/^commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p'); do
    page expar "$command"
done
for kind in step ops ep scaling; do page expar bench $kind; done
