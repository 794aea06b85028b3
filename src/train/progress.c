#include "train/progress.h"

#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>
#include "core/file.h"

#define BAR_CELLS   24
#define REDRAW_S    0.1
#define ETA_HISTORY 0.9 /* weight of the past in the running mean of a step's time */

struct xp_progress {
    FILE *file;
    bool shown, is_terminal;
    int64_t total, last_done;
    double last_time, last_draw, step_s;
};

void xp_format_duration(double seconds, char out[32]) {
    int64_t s = seconds > 0 ? (int64_t)(seconds + 0.5) : 0;
    if (s >= 3600)
        snprintf(out, 32, "%lldh%02lldm%02llds", (long long)(s / 3600), (long long)(s / 60 % 60),
                 (long long)(s % 60));
    else if (s >= 60)
        snprintf(out, 32, "%lldm%02llds", (long long)(s / 60), (long long)(s % 60));
    else
        snprintf(out, 32, "%llds", (long long)s);
}

xp_status xp_progress_create(FILE *file, int64_t first, int64_t total, xp_progress **progress) {
    xp_progress *p = calloc(1, sizeof *p);
    if (!p)
        return xp_error(XP_ENOMEM, "no memory for the progress bar");
    p->file = file;
    p->is_terminal = isatty(fileno(file)) == 1;
    p->total = total;
    p->last_done = first;
    p->last_time = xp_time_s();
    *progress = p;
    return XP_OK;
}

static void measure(xp_progress *p, int64_t done) {
    double now = xp_time_s();
    if (done > p->last_done) {
        double each = (now - p->last_time) / (double)(done - p->last_done);
        p->step_s = p->step_s > 0 ? ETA_HISTORY * p->step_s + (1 - ETA_HISTORY) * each : each;
    }
    p->last_done = done;
    p->last_time = now;
}

void xp_progress_update(xp_progress *progress, int64_t done, const char *note) {
    if (!progress || !progress->is_terminal)
        return;
    measure(progress, done);
    if (progress->shown && progress->last_time - progress->last_draw < REDRAW_S)
        return;
    progress->last_draw = progress->last_time;
    char bar[BAR_CELLS + 1];
    int64_t full = progress->total > 0 ? done * BAR_CELLS / progress->total : BAR_CELLS;
    for (int i = 0; i < BAR_CELLS; i++)
        bar[i] = i < full ? '#' : '.';
    bar[BAR_CELLS] = '\0';
    char eta[32];
    xp_format_duration(progress->step_s * (double)(progress->total - done), eta);
    fprintf(progress->file, "\r\033[K[%s] %lld/%lld  %s  ETA %s", bar, (long long)done,
            (long long)progress->total, note, eta);
    fflush(progress->file);
    progress->shown = true;
}

void xp_progress_clear(xp_progress *progress) {
    if (!progress || !progress->shown)
        return;
    fputs("\r\033[K", progress->file);
    fflush(progress->file);
    progress->shown = false;
}

void xp_progress_destroy(xp_progress *progress) {
    xp_progress_clear(progress);
    free(progress);
}
