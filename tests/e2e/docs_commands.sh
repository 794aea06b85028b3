#!/usr/bin/env bash
# docs/reference/commands.md is what the commands' --help prints now, and every command is in it. Every --section.key of
# the pages and of the configurations' comments is a key.
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

keys=$("$EXPAR" config --markdown | awk '/^### /{gsub(/[^a-z_]/, ""); section = $0} /^\| `/{split($0, part, "`"); print section "." part[2]}')
cd "$SOURCE"
used=$(grep -ohE -- '--[a-z_]+\.[a-z_0-9]+' README.md CONTRIBUTING.md docs/*.md docs/*/*.md configs/*.toml | sed 's/^--//; s/\.no_/./' | sort -u)
[ "$(echo "$used" | wc -l)" -ge 20 ] || {
    echo "FAILED: too few options found in the pages: $used"
    exit 1
}
wrong=$(comm -13 <(echo "$keys" | sort) <(echo "$used") | grep -vxE 'section\.(key|flag)' || true)
[ -z "$wrong" ] || {
    echo "FAILED: the pages name options that do not exist: $wrong"
    exit 1
}
