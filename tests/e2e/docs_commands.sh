#!/usr/bin/env bash
# docs/reference/commands.md is what the commands' --help prints now, and every command is in it.
set -eu
page=$SOURCE/docs/reference/commands.md
now=$(mktemp "${TMPDIR:-/tmp}/expar_commands.XXXXXX")
trap 'rm -f "$now"' EXIT
"$SOURCE/scripts/commands_page.sh" "$EXPAR" > "$now"
diff -u "$page" "$now" || {
    echo "FAILED: out of date; run scripts/commands_page.sh build/release/bin/expar > docs/reference/commands.md"
    exit 1
}
commands=$("$EXPAR" --help | sed -n '/^commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p')
[ "$(echo "$commands" | wc -l)" -ge 10 ] || {
    echo "FAILED: expar --help lists these commands only: $commands"
    exit 1
}
for command in $commands; do
    grep -qx "## expar $command" "$page" || {
        echo "FAILED: $command is missing"
        exit 1
    }
done
