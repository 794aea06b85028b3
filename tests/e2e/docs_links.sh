#!/usr/bin/env bash
# Links between the repository's pages lead somewhere: files exist, headings exist.
set -eu
cd "$SOURCE"
n=0
wrong=0
slugs() { # the anchors of a page, as forges make them
    sed '/^```/,/^```/d' "$1" | grep -E '^#{1,6} ' | sed -E 's/^#+ +//' | tr '[:upper:]' '[:lower:]' |
        sed -E 's/[^a-z0-9 _-]//g; s/ /-/g'
}
while IFS= read -r page; do
    while IFS= read -r link; do
        case $link in http://* | https://* | mailto:*) continue ;; esac
        n=$((n + 1))
        file=${link%%#*}
        target=$page
        [ -z "$file" ] || target=$(dirname "$page")/$file
        if [ ! -e "$target" ]; then
            echo "$page: ($link) leads nowhere"
            wrong=1
        elif [ "$link" != "$file" ] && ! slugs "$target" | grep -qx -- "${link#*#}"; then
            echo "$page: ($link): no such heading"
            wrong=1
        fi
    done < <(sed '/^```/,/^```/d' "$page" | grep -oE '\]\([^) ]+' | sed 's/^](//')
done < <(find . -name '*.md' -not -path './build/*' -not -path './.git/*' -not -path './outputs/*')
[ "$n" -gt 0 ] || {
    echo "no link found: the test looks for them wrongly"
    exit 1
}
[ "$wrong" -eq 0 ] && echo "$n links"
exit "$wrong"
