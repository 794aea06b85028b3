#!/usr/bin/env bash
# Refuse words that this project once had for things that NCCL, DeepEP, Megatron-Core and CUTLASS name otherwise. CONTRIBUTING.md says
# which word stands for what. usage: scripts/check_words.sh [FILE...]
# A row below: pattern (Perl, case-insensitive) ~ what to say instead ~ lines that may hold it (Perl).
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t files < <(if [ $# -gt 0 ]; then printf '%s\n' "$@"; else
    git ls-files src include cli docs bench tests examples python README.md CONTRIBUTING.md |
        grep -E '\.(c|h|cu|cuh|cpp|sh|py|md|txt|toml)$' | grep -vE 'docs/performance-log|fixtures/'
fi)
wrong=0
while IFS='~' read -r pattern instead allowed; do
    [ -n "$pattern" ] || continue
    found=$(grep -nHiP -- "$pattern" "${files[@]}" | { [ -n "$allowed" ] && grep -vP -- "$allowed" || cat; } || true)
    [ -n "$found" ] || continue
    wrong=1
    printf 'say "%s":\n%s\n' "$instead" "$(printf '%s\n' "$found" | cut -c1-160 | head -n "${MOST:-12}")"
    printf '  (%d lines)\n' "$(printf '%s\n' "$found" | wc -l)"
done <<'WORDS'
(?<![a-z])(grouped[_ ]|dense |expert |matrix )products?(?![a-z])~GEMM, grouped GEMM~
(?<![a-z])(multiplying|copying) (warps?|half|threads)(?![a-z])~consumer / producer warpgroups~
(?<![a-z])pairs? of blocks(?![a-z])~2-CTA clusters~
xp_ep_walk|(?<![a-z])walk_of|(?<![a-z])tile walk~tile range, tile scheduler~
(?<![a-z])meetings?(?![a-z])~barrier~
(?<![a-z])(hosts?|ranks?|kernels?|gpus?) (meet|met)(?![a-z])|(?<![a-z])meet_?(hosts|by|on|kernel)|xp_\w*_meet(?![a-z])~barrier~
xp_ep_gates|(?<![a-z])gates?_(enter|leave|open|close|wait)~launch locks~
(?<![a-z])home(coming)? rows|(?<![a-z])(bring|brings|bringing|brought)[ _](\w+[ _])?home|sum_home|xp_ep_home|push_home~combine, combine buffer~
mailbox~metadata exchange, payload~
xp_\w*relay|(?<![a-z])relay(s|ed|ing)?(?![a-z])~inter-node forwarding, failure forwarding~
(?<![a-z])row moves?(?![a-z])|move_(rows|job|blocks|on_gpu)|moves_wide|hier_moves|(?<![a-z])take_rows~row copy, dispatch rows; push and pull only where a peer's memory is meant~bench/
(?<![a-z])picks?_?(rows?|capacity|base|pos)?(?![a-z])~expert assignment, assignment row~(src/launch|src/train/start_choice|src/data|docs/howto|cli)/|[Pp]ick(s|ed)? (up|a|the|one|which|its)
(?<![a-z])(take_)?seats?(?![a-z])|seating|seat_ranks~GPU placement~
xp_ep_cuda_(fate|news|note)|(?<![a-z])(fates?|stop_words|stop words)(?![a-z])~device status block, abort flags~
xp_bell|(?<![a-z])bells?(?![a-z])~futex event~
xp_board|(?<![a-z])boards?(?![a-z])~shared-memory liveness table~[Tt]ensor[Bb]oard|tensorboard
xp_nccl_mark|all_marks|n_marks|meet_by_marks~CUDA events~
(?<![a-z])xp_guard_~mprotect'ed test device~
xp_device_product|gpu_of_product~GPU model name~
(?<![a-z])phased(?![a-z])~host-synchronised mode~
(?<![a-z])(farewell|last_words|last words)(?![a-z])~final barrier, failure report~
keeps? its appointments|without looking|in the same breath~a plain sentence~
WORDS
[ $wrong = 0 ] && echo "words: ok (${#files[@]} files)"
exit $wrong
