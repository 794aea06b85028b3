#include "launch/cause.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#define CODE_FAILED 1
#define CODE_USAGE  2

typedef enum weight { NOTHING = 0, SECONDHAND, SILENT, OWN, KILLED } weight;

static weight weigh(const xp_rank_outcome *rank) {
    if (!rank->ended || rank->ended_by_launcher)
        return NOTHING;
    if (rank->vanished || rank->end.signal != 0)
        return KILLED;
    if (rank->end.code == 0)
        return NOTHING;
    if (!rank->end.reported)
        return SILENT;
    return rank->end.secondhand ? SECONDHAND : OWN;
}

/* Of the ranks of that weight: the first that was killed, but the last that failed by itself. */
static const xp_rank_outcome *pick(const xp_rank_outcome *ranks, int n, weight w) {
    const xp_rank_outcome *picked = NULL;
    for (int r = 0; r < n; r++) {
        if (weigh(&ranks[r]) != w)
            continue;
        const bool earlier = picked && ranks[r].ended_s < picked->ended_s;
        if (!picked || (w == OWN ? !earlier : earlier))
            picked = &ranks[r];
    }
    return picked;
}

static void describe_killed(const xp_rank_outcome *killed, const xp_rank_outcome *finder,
                            char *text, size_t n_bytes) {
    int n;
    if (killed->vanished)
        n = snprintf(text, n_bytes, "rank %d was killed together with the process that watched it",
                     killed->end.rank);
    else if (killed->end.signal == SIGPIPE) { /* what another rank found out says no more */
        snprintf(
            text, n_bytes,
            "rank %d has written into a pipe that nobody reads any more: the program that this "
            "run's output goes to has ended (SIGPIPE)",
            killed->end.rank);
        return;
    } else
        n = snprintf(text, n_bytes, "rank %d was killed by signal %d (%s)", killed->end.rank,
                     killed->end.signal, strsignal(killed->end.signal));
    if (finder && n > 0 && (size_t)n < n_bytes)
        snprintf(text + n, n_bytes - (size_t)n, "; %s", finder->end.text);
}

int xp_launch_find_cause(const xp_rank_outcome *ranks, int n_ranks, char *text, size_t n_bytes) {
    const xp_rank_outcome *own = pick(ranks, n_ranks, OWN);
    const xp_rank_outcome *cause = pick(ranks, n_ranks, KILLED);
    text[0] = '\0';
    if (cause) {
        describe_killed(cause, own, text, n_bytes);
        return CODE_FAILED;
    }
    cause = own;
    if (!cause && (cause = pick(ranks, n_ranks, SILENT)) != NULL) {
        snprintf(text, n_bytes, "rank %d ended with exit code %d and no message", cause->end.rank,
                 cause->end.code);
        return CODE_FAILED;
    }
    if (!cause)
        cause = pick(ranks, n_ranks, SECONDHAND);
    if (!cause)
        return 0;
    snprintf(text, n_bytes, "%s", cause->end.text);
    return cause->end.code == CODE_USAGE ? CODE_USAGE : CODE_FAILED;
}
