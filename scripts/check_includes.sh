#!/usr/bin/env bash
# Refuse includes against the layers: a folder of src/ may include itself, what stands on its right, and what that may reach.
# Vendor headers may appear in their rooms only. Public headers must compile alone, as C17 and as C++17.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A direct=(
    [core]="" [launch]="core" [config]="core" [device]="core" [ops]="device" [comm]="device" [ep]="ops comm" [model]="ops ep config"
    [parallel]="ops comm model config" [data]="core" [checkpoint]="device comm" [predict]="model parallel config"
    [report]="core checkpoint predict" [tune]="parallel config"
    [train]="core launch config device ops comm ep model parallel data checkpoint predict tune"
)
reach() { # everything that $1 may include
    local seen=" $1 " queue=("$1") next dep
    while [ ${#queue[@]} -gt 0 ]; do
        next=${queue[0]} queue=("${queue[@]:1}")
        for dep in ${direct[$next]}; do
            case $seen in *" $dep "*) ;; *) seen+="$dep " queue+=("$dep") ;; esac
        done
    done
    echo "$seen"
}

for folder in src/*/; do
    folder=$(basename "$folder")
    [ -n "${direct[$folder]+known}" ] || { echo "src/$folder: scripts/check_includes.sh does not know this folder"; exit 1; }
done
bad=0
complain() { echo "$1"; bad=1; }
for folder in "${!direct[@]}"; do
    allowed=$(reach "$folder")
    while IFS=: read -r file line text; do
        target=$(sed -n 's/.*"\([a-z]*\)\/.*/\1/p' <<<"$text")
        [ -z "$target" ] || [ "$target" = expar ] && continue
        case $allowed in
        *" $target "*) ;;
        *) complain "$file:$line: src/$folder may not include $target/" ;;
        esac
    done < <(grep -rnE '^#include "' "src/$folder" --include='*.c' --include='*.h' --include='*.cu' --include='*.cuh' 2>/dev/null || true)
done

vendor() { # pattern, allowed folders as a regular expression
    while IFS=: read -r file line _; do
        [[ $file =~ $2 ]] || complain "$file:$line: vendor header outside of its room ($2)"
    done < <(grep -rnE "^#include <($1)" src cli include 2>/dev/null || true)
}
vendor 'cuda|cublas|cudnn' '/cuda/'
vendor 'nccl' '(comm/nccl|/cuda/)'
vendor 'mpi\.h' 'comm/mpi/'
vendor 'cblas|openblas' 'ops/cpu/'
vendor 'jansson' '(src/data|src/checkpoint|src/model|src/config|src/report)/'
vendor 'pcre2|utf8proc' 'src/data/'

for header in include/expar/*.h; do
    gcc -std=c17 -Wall -Wextra -Werror -Iinclude -fsyntax-only -x c "$header" || complain "$header does not compile alone as C17"
    g++ -std=c++17 -Wall -Wextra -Werror -Iinclude -fsyntax-only -x c++ "$header" || complain "$header does not compile alone as C++17"
done
[ $bad -eq 0 ] && echo "include layers: ok"
exit $bad
