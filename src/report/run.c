#include "report/run.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "checkpoint/publish.h"
#include "core/file.h"

#define MAX_CONFIG_BYTES ((size_t)4 << 20)
#define CHUNK_BYTES      ((size_t)4 << 20) /* read at once; a longer line grows the buffer */
#define MAX_LINE_BYTES   ((size_t)64 << 20)

/* ---- the metrics file -------------------------------------------------------------------- */

typedef struct reader {
    xp_report_run *run;
    int fd;
    char *data; /* bytes that are not lines yet */
    size_t n, capacity;
    float loads[XP_N_LOADS][XP_REPORT_MAX_LAYERS];
} reader;

static xp_status read_line(reader *r, const char *line, size_t n_bytes) {
    xp_report_run *run = r->run;
    xp_report_row row;
    run->n_lines++;
    if (xp_report_parse_line(line, n_bytes, r->loads, &row))
        return xp_report_add_row(run, &row);
    if (run->n_damaged++ == 0)
        run->first_damaged = run->n_lines;
    return XP_OK;
}

static void remember_tail(xp_report_run *run, const char *end, size_t n) {
    const size_t kept = n < sizeof run->tail ? n : sizeof run->tail;
    memcpy(run->tail, end - kept, kept);
    run->tail_bytes = (int)kept;
}

/* Whole lines of the buffer; what is left moves to its front. */
static xp_status read_lines(reader *r) {
    size_t at = 0;
    const char *end;
    while ((end = memchr(r->data + at, '\n', r->n - at)) != NULL) {
        const size_t n = (size_t)(end - (r->data + at));
        XP_TRY(read_line(r, r->data + at, n));
        at += n + 1;
        r->run->read_bytes += (int64_t)n + 1;
    }
    if (at > 0)
        remember_tail(r->run, r->data + at, at);
    memmove(r->data, r->data + at, r->n - at);
    r->n -= at;
    return XP_OK;
}

static xp_status make_room(reader *r) {
    if (r->capacity - r->n >= CHUNK_BYTES / 2)
        return XP_OK;
    const size_t capacity = r->capacity == 0 ? CHUNK_BYTES : 2 * r->capacity;
    if (capacity > 2 * MAX_LINE_BYTES)
        return xp_error(XP_EFORMAT, "%s: a line has more than %zu MiB", r->run->metrics_path,
                        MAX_LINE_BYTES >> 20);
    char *data = realloc(r->data, capacity);
    if (!data)
        return xp_error(XP_ENOMEM, "no memory for a part of %s", r->run->metrics_path);
    r->data = data;
    r->capacity = capacity;
    return XP_OK;
}

static xp_status read_to_end(reader *r) {
    if (lseek(r->fd, (off_t)r->run->read_bytes, SEEK_SET) < 0)
        return xp_error(XP_EIO, "cannot read %s: %s", r->run->metrics_path, strerror(errno));
    for (;;) {
        XP_TRY(make_room(r));
        const ssize_t n = read(r->fd, r->data + r->n, r->capacity - r->n);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return xp_error(XP_EIO, "cannot read %s: %s", r->run->metrics_path, strerror(errno));
        if (n == 0)
            return XP_OK;
        r->n += (size_t)n;
        XP_TRY(read_lines(r));
    }
}

static void forget_steps(xp_report_run *run) {
    run->n_steps = run->n_lines = run->n_damaged = run->first_damaged = 0;
    run->read_bytes = 0;
    run->tail_bytes = 0;
}

/* The lines read so far are still the beginning of this file. */
static bool goes_on(const xp_report_run *run, int fd, const struct stat *st) {
    char tail[sizeof run->tail];
    return (uint64_t)st->st_ino == run->file_id && st->st_size >= (off_t)run->read_bytes &&
           pread(fd, tail, (size_t)run->tail_bytes, (off_t)run->read_bytes - run->tail_bytes) ==
               run->tail_bytes &&
           memcmp(tail, run->tail, (size_t)run->tail_bytes) == 0;
}

/* A pipe must not be waited for; O_NONBLOCK changes nothing for files. */
static xp_status open_metrics(const char *path, int *fd, struct stat *st) {
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return xp_error(errno == ENOENT ? XP_ENOENT : XP_EIO, "cannot open %s: %s", path,
                        strerror(errno));
    if (fstat(*fd, st) == 0 && S_ISREG(st->st_mode))
        return XP_OK;
    close(*fd);
    return xp_error(XP_EIO, "cannot read %s: it is not a regular file", path);
}

static xp_status read_metrics(xp_report_run *run, bool follow, bool *changed) {
    reader r = {.run = run};
    struct stat st;
    XP_TRY(open_metrics(run->metrics_path, &r.fd, &st));
    *changed = false;
    if (!goes_on(run, r.fd, &st)) {
        *changed = run->n_steps > 0;
        forget_steps(run);
        run->file_id = (uint64_t)st.st_ino;
    }
    const int64_t before = run->n_lines;
    xp_status status = read_to_end(&r);
    if (status == XP_OK && !follow && r.n > 0)
        status = read_line(&r, r.data, r.n);
    *changed = *changed || run->n_lines > before;
    free(r.data);
    close(r.fd);
    return status;
}

/* ---- the folder -------------------------------------------------------------------------- */

static const char *setting(const xp_report_run *run, const char *key) {
    for (int i = 0; i < run->n_settings; i++)
        if (strcmp(run->settings[i].key, key) == 0)
            return run->settings[i].value;
    return NULL;
}

/* The text between quotes: names of files have no escapes worth knowing. Caller frees. */
static char *unquoted(const char *value) {
    const size_t n = value ? strlen(value) : 0;
    return n > 2 && value[0] == '"' && value[n - 1] == '"' ? strndup(value + 1, n - 2) : NULL;
}

static xp_status read_config(xp_report_run *run) {
    char *path = xp_path_join(run->folder, "config.toml"), *text = NULL;
    size_t n = 0;
    bool found = false;
    xp_status status =
        path ? xp_path_exists(path, &found) : xp_error(XP_ENOMEM, "no memory for a path");
    if (status == XP_OK && found)
        status = xp_file_read(path, MAX_CONFIG_BYTES, &text, &n);
    if (status == XP_OK && text)
        status = xp_report_parse_config(text, &run->settings, &run->n_settings);
    free(text);
    free(path);
    return status;
}

static xp_status list_checkpoints(xp_report_run *run) {
    char *name = unquoted(setting(run, "checkpoint.folder"));
    char *path = xp_path_join(run->folder, name ? name : "checkpoint");
    bool found = false;
    free(run->checkpoints);
    run->checkpoints = NULL;
    run->n_checkpoints = 0;
    xp_status status =
        path ? xp_path_is_folder(path, &found) : xp_error(XP_ENOMEM, "no memory for a path");
    if (status == XP_OK && found)
        status = xp_steps_list(path, &run->checkpoints, &run->n_checkpoints);
    free(path);
    free(name);
    return status;
}

static xp_status find_in_folder(xp_report_run *run, bool follow) {
    bool found = false;
    XP_TRY(read_config(run));
    XP_TRY(list_checkpoints(run));
    char *name = unquoted(setting(run, "metrics.log_file"));
    run->metrics_path = xp_path_join(run->folder, name ? name : "metrics.jsonl");
    free(name);
    if (!run->metrics_path)
        return xp_error(XP_ENOMEM, "no memory for a path");
    XP_TRY(xp_path_exists(run->metrics_path, &found));
    if (found || follow)
        return XP_OK;
    const char *file = strrchr(run->metrics_path, '/') + 1;
    char below[512];
    if (xp_folder_find_below(run->folder, file, below, sizeof below))
        return xp_error(XP_ENOENT, "%s has no %s; did you mean %s?", run->folder, file, below);
    return xp_error(XP_ENOENT,
                    "%s has no %s: either it is no dump folder (job.dump_folder), or the run has "
                    "not finished its first step",
                    run->folder, file);
}

static xp_status open_run(const char *path, bool follow, xp_report_run *run) {
    bool is_folder = false, found = false, changed;
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    run->name = strndup(path, n);
    char **to = NULL;
    XP_TRY(xp_path_exists(path, &found));
    if (!found)
        return xp_error(XP_ENOENT, "there is no folder or file %s", path);
    XP_TRY(xp_path_is_folder(path, &is_folder));
    to = is_folder ? &run->folder : &run->metrics_path;
    *to = strndup(path, n);
    if (!run->name || !*to)
        return xp_error(XP_ENOMEM, "no memory for a path");
    if (is_folder)
        XP_TRY(find_in_folder(run, follow));
    const xp_status status = read_metrics(run, follow, &changed);
    if (follow && is_folder && status == XP_ENOENT)
        return XP_OK;
    XP_TRY(status);
    if (run->n_steps > 0 || (follow && run->n_damaged == 0))
        return XP_OK;
    if (run->n_lines == 0)
        return xp_error(XP_ENOENT, "%s has no step yet", run->metrics_path);
    return xp_error(XP_EFORMAT,
                    "%s: not one of its %lld lines is a step of metrics.jsonl "
                    "({\"step\": 1, \"loss\": ...})",
                    run->metrics_path, (long long)run->n_lines);
}

xp_status xp_report_run_open(const char *path, bool follow, xp_report_run **run) {
    xp_report_run *r = calloc(1, sizeof *r);
    if (!r)
        return xp_error(XP_ENOMEM, "no memory for a run");
    const xp_status status = open_run(path, follow, r);
    if (status != XP_OK) {
        xp_report_run_close(r);
        return status;
    }
    *run = r;
    return XP_OK;
}

xp_status xp_report_run_refresh(xp_report_run *run, bool *changed) {
    XP_TRY(read_metrics(run, true, changed));
    return *changed && run->folder ? list_checkpoints(run) : XP_OK;
}

void xp_report_run_close(xp_report_run *run) {
    if (!run)
        return;
    for (int i = 0; i < run->n_settings; i++) {
        free(run->settings[i].key);
        free(run->settings[i].value);
    }
    for (int c = 0; c < XP_N_COLUMNS; c++)
        free(run->columns[c]);
    for (int k = 0; k < XP_N_LOADS; k++)
        free(run->loads[k]);
    free(run->settings);
    free(run->checkpoints);
    free(run->name);
    free(run->metrics_path);
    free(run->folder);
    free(run);
}
