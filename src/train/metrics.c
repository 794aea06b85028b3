#include "train/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/file.h"
#include "train/tfevents.h"

#define MAX_METRICS_BYTES ((size_t)4 << 30)

struct xp_metrics {
    int fd;
    char *path, *kept;
    off_t n_bytes; /* whole lines in the file */
    xp_tfevents *events;
    xp_text lines; /* not written yet: this step's, and those of failed writes */
};

void xp_format_thousands(double value, char out[32]) {
    char digits[32];
    int n = snprintf(digits, sizeof digits, "%.0f", value < 0 ? 0 : value);
    int at = 0;
    for (int i = 0; i < n && at < 30; i++) {
        if (i > 0 && (n - i) % 3 == 0)
            out[at++] = ',';
        out[at++] = digits[i];
    }
    out[at] = '\0';
}

/* ---- the step line ----------------------------------------------------------------------- */

void xp_metrics_line(const xp_step_record *record, bool color, xp_text *line) {
    const char *const red = color ? "\033[31m" : "";
    const char *const green = color ? "\033[32m" : "";
    const char *const orange = color ? "\033[38;2;180;60;0m" : "";
    const char *const turquoise = color ? "\033[38;2;54;234;195m" : "";
    const char *const blue = color ? "\033[34m" : "";
    const char *const cyan = color ? "\033[36m" : "";
    const char *const magenta = color ? "\033[35m" : "";
    char tps[32];
    xp_format_thousands(record->tps, tps);
    xp_text_printf(line, "%sstep: %2" PRId64 "  %sloss: %8.5f  %sgrad_norm: %7.4f", red,
                   record->step, green, record->loss, orange, record->grad_norm);
    xp_text_printf(line, "  %smemory: %5.2fGiB(%.2f%%)", turquoise, record->memory_gib,
                   record->memory_percent);
    xp_text_printf(line, "  %stps: %s  %stflops: %.2f", blue, tps, cyan, record->tflops);
    if (record->mfu_percent >= 0)
        xp_text_printf(line, "  %smfu: %.2f%%", magenta, record->mfu_percent);
    else
        xp_text_printf(line, "  %smfu: n/a", magenta);
    xp_text_puts(line, color ? "\033[39m" : "");
}

/* ---- metrics.jsonl ----------------------------------------------------------------------- */

static void add_double(xp_text *line, const char *key, double value) {
    xp_text_printf(line, ", \"%s\": ", key);
    xp_text_add_json_double(line, value);
}

static void add_int(xp_text *line, const char *key, int64_t value) {
    xp_text_printf(line, ", \"%s\": %" PRId64, key, value);
}

static void add_list(xp_text *line, const char *key, const double *values, int n) {
    xp_text_printf(line, ", \"%s\": [", key);
    for (int i = 0; i < n; i++) {
        if (i > 0)
            xp_text_puts(line, ", ");
        xp_text_add_json_double(line, values[i]);
    }
    xp_text_puts(line, "]");
}

void xp_metrics_json(const xp_step_record *record, xp_text *line) {
    xp_text_printf(line, "{\"step\": %" PRId64, record->step);
    add_double(line, "loss", record->loss);
    add_double(line, "grad_norm", record->grad_norm);
    add_double(line, "lr", record->lr);
    add_double(line, "aux_loss", record->aux_loss);
    add_double(line, "z_loss", record->z_loss);
    add_double(line, "memory_gib", record->memory_gib);
    add_double(line, "memory_percent", record->memory_percent);
    add_double(line, "tps", record->tps);
    add_double(line, "tflops", record->tflops);
    add_double(line, "mfu", record->mfu_percent < 0 ? NAN : record->mfu_percent);
    add_int(line, "tokens_seen", record->tokens_seen);
    add_int(line, "rows_seen", record->rows_seen);
    add_double(line, "time_s", record->time_s);
    add_double(line, "data_time_s", record->data_time_s);
    add_double(line, "forward_backward_s", record->forward_backward_s);
    add_double(line, "optimizer_s", record->optimizer_s);
    add_double(line, "checkpoint_s", record->checkpoint_s);
    add_double(line, "validation_s", record->validation_s);
    if (!isnan(record->validation_loss))
        add_double(line, "validation_loss", record->validation_loss);
    add_list(line, "moe_load_max_over_mean", record->load_max_over_mean, record->n_moe_layers);
    add_list(line, "moe_load_busiest_rank_share", record->load_busiest_rank_share,
             record->n_moe_layers);
    add_int(line, "ep_bytes", record->ep_bytes);
    add_int(line, "ep_overflow_rows", record->ep_overflow_rows);
    add_int(line, "moe_recomputed_rounds", record->moe_recomputed_rounds);
    add_int(line, "moe_recomputed_overflow", record->moe_recomputed_overflow);
    add_double(line, "ep_wait_s", record->ep_wait_s);
    add_int(line, "n_host_syncs", record->n_host_syncs);
    add_int(line, "n_allocs", record->n_allocs);
    if (record->first_of_start)
        add_int(line, "resumed_step", record->resumed_step);
    xp_text_puts(line, "}\n");
}

/* The step of a line, -1 when it is none of ours (half a line after a crash, for instance). */
static int64_t line_step(const char *line, size_t n) {
    static const char start[] = "{\"step\": ";
    char digits[24];
    size_t prefix = sizeof start - 1;
    if (n < prefix + 2 || memcmp(line, start, prefix) != 0 || line[n - 1] != '}')
        return -1;
    size_t length = 0;
    while (length < sizeof digits - 1 && prefix + length < n && line[prefix + length] != ',')
        length++;
    memcpy(digits, line + prefix, length);
    digits[length] = '\0';
    int64_t step = -1;
    return xp_parse_i64(digits, &step) ? step : -1;
}

/* The largest step of all whole lines; -1: none. */
static int64_t last_step(const char *data, size_t n_bytes) {
    int64_t last = -1;
    for (size_t at = 0; at < n_bytes;) {
        const char *end = memchr(data + at, '\n', n_bytes - at);
        if (!end)
            break;
        int64_t step = line_step(data + at, (size_t)(end - (data + at)));
        last = step > last ? step : last;
        at = (size_t)(end - data) + 1;
    }
    return last;
}

/* "m-2.jsonl" of "m.jsonl" */
static xp_status numbered_name(const char *path, int number, char **out) {
    const char *slash = strrchr(path, '/'), *dot = strrchr(slash ? slash : path, '.');
    int n = (int)(dot ? dot - path : (ptrdiff_t)strlen(path));
    if (asprintf(out, "%.*s-%d%s", n, path, number, dot ? dot : "") >= 0)
        return XP_OK;
    *out = NULL;
    return xp_error(XP_ENOMEM, "no memory for a path");
}

/* The whole file under the first free name. */
static xp_status keep_copy(xp_metrics *metrics, const char *data, size_t n_bytes) {
    for (int i = 1;; i++) {
        char *path = NULL;
        bool taken = false;
        XP_TRY(numbered_name(metrics->path, i, &path));
        xp_status status = xp_path_exists(path, &taken);
        if (status == XP_OK && !taken)
            status = xp_file_write_atomic(path, data, n_bytes);
        if (status == XP_OK && !taken)
            metrics->kept = path;
        else
            free(path);
        if (status != XP_OK || !taken)
            return status;
    }
}

/* Keep whole lines of steps up to resumed_step: what follows will be written again. */
static xp_status cut_off(xp_metrics *metrics, int64_t resumed_step, bool keep_earlier) {
    const char *path = metrics->path;
    bool found = false;
    XP_TRY(xp_path_exists(path, &found));
    if (!found)
        return XP_OK;
    char *data = NULL;
    size_t n_bytes = 0;
    XP_TRY(xp_file_read(path, MAX_METRICS_BYTES, &data, &n_bytes));
    if (keep_earlier && last_step(data, n_bytes) > resumed_step) {
        xp_status kept_status = keep_copy(metrics, data, n_bytes);
        if (kept_status != XP_OK) {
            free(data);
            return kept_status;
        }
    }
    size_t kept = 0;
    for (size_t at = 0; at < n_bytes;) {
        const char *end = memchr(data + at, '\n', n_bytes - at);
        if (!end)
            break;
        size_t n = (size_t)(end - (data + at));
        int64_t step = line_step(data + at, n);
        if (step >= 1 && step <= resumed_step) {
            memmove(data + kept, data + at, n + 1);
            kept += n + 1;
        }
        at += n + 1;
    }
    xp_status status = kept == n_bytes ? XP_OK : xp_file_write_atomic(path, data, kept);
    free(data);
    return status;
}

static xp_status open_files(xp_metrics *metrics, const xp_metrics_args *args) {
    metrics->path = strdup(args->jsonl_path);
    if (!metrics->path)
        return xp_error(XP_ENOMEM, "no memory for the metrics");
    XP_TRY(cut_off(metrics, args->resumed_step, args->keep_earlier));
    metrics->fd = open(args->jsonl_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (metrics->fd < 0)
        return xp_error(XP_EIO, "cannot open %s: %s", args->jsonl_path, strerror(errno));
    metrics->n_bytes = lseek(metrics->fd, 0, SEEK_END);
    if (metrics->n_bytes < 0)
        return xp_error(XP_EIO, "cannot read %s: %s", args->jsonl_path, strerror(errno));
    if (args->tensorboard_folder)
        XP_TRY(xp_tfevents_create(args->tensorboard_folder, &metrics->events));
    return XP_OK;
}

xp_status xp_metrics_open(const xp_metrics_args *args, xp_metrics **metrics) {
    xp_metrics *m = calloc(1, sizeof *m);
    if (!m)
        return xp_error(XP_ENOMEM, "no memory for the metrics");
    m->fd = -1;
    xp_status status = open_files(m, args);
    if (status != XP_OK) {
        xp_metrics_close(m);
        return status;
    }
    *metrics = m;
    return XP_OK;
}

/* ---- TensorBoard ------------------------------------------------------------------------- */

/* TorchTitan's tags, so that runs of both show in one plot. */
static xp_status add_events(xp_metrics *metrics, const xp_step_record *r) {
    double load = 0;
    double share = 0;
    for (int i = 0; i < r->n_moe_layers; i++) {
        load = fmax(load, r->load_max_over_mean[i]);
        share = fmax(share, r->load_busiest_rank_share[i]);
    }
    xp_tb_scalar scalars[20];
    int n = 0;
    scalars[n++] = (xp_tb_scalar){"loss_metrics/global_avg_loss", r->loss};
    scalars[n++] = (xp_tb_scalar){"grad_norm", r->grad_norm};
    scalars[n++] = (xp_tb_scalar){"lr", r->lr};
    scalars[n++] = (xp_tb_scalar){"n_tokens_seen", (double)r->tokens_seen};
    scalars[n++] = (xp_tb_scalar){"throughput(tps)", r->tps};
    scalars[n++] = (xp_tb_scalar){"tflops", r->tflops};
    if (r->mfu_percent >= 0)
        scalars[n++] = (xp_tb_scalar){"mfu(%)", r->mfu_percent};
    scalars[n++] = (xp_tb_scalar){"time_metrics/end_to_end(s)", r->time_s};
    scalars[n++] = (xp_tb_scalar){"time_metrics/data_loading(s)", r->data_time_s};
    scalars[n++] = (xp_tb_scalar){"time_metrics/forward_backward(s)", r->forward_backward_s};
    scalars[n++] = (xp_tb_scalar){"time_metrics/optimizer(s)", r->optimizer_s};
    scalars[n++] = (xp_tb_scalar){"memory/max_reserved(GiB)", r->memory_gib};
    if (r->aux_loss > 0)
        scalars[n++] = (xp_tb_scalar){"loss_metrics/aux_loss", r->aux_loss};
    if (r->z_loss > 0)
        scalars[n++] = (xp_tb_scalar){"loss_metrics/z_loss", r->z_loss};
    if (!isnan(r->validation_loss))
        scalars[n++] = (xp_tb_scalar){"validation_metrics/global_avg_loss", r->validation_loss};
    if (r->n_moe_layers > 0) {
        scalars[n++] = (xp_tb_scalar){"moe/load_max_over_mean(worst layer)", load};
        scalars[n++] = (xp_tb_scalar){"moe/busiest_rank_share(worst layer)", share};
        scalars[n++] = (xp_tb_scalar){"moe/ep_bytes", (double)r->ep_bytes};
    }
    return xp_tfevents_add(metrics->events, r->step, scalars, n);
}

/* All lines or none: half a line would damage the file for its readers. */
static xp_status write_lines(xp_metrics *metrics) {
    const char *data = metrics->lines.data;
    size_t left = metrics->lines.length;
    while (left > 0) {
        ssize_t n = write(metrics->fd, data, left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            xp_status status = xp_error(XP_EIO, "cannot write %s: %s", metrics->path,
                                        strerror(n < 0 ? errno : ENOSPC));
            if (ftruncate(metrics->fd, metrics->n_bytes) != 0)
                return xp_error_context(status, "half a line may stay");
            return status;
        }
        data += n;
        left -= (size_t)n;
    }
    metrics->n_bytes += (off_t)metrics->lines.length;
    xp_text_clear(&metrics->lines);
    return XP_OK;
}

const char *xp_metrics_kept(const xp_metrics *metrics) {
    return metrics->kept;
}

xp_status xp_metrics_add(xp_metrics *metrics, const xp_step_record *record) {
    xp_metrics_json(record, &metrics->lines);
    if (metrics->lines.failed) {
        xp_text_free(&metrics->lines);
        return xp_error(XP_ENOMEM, "no memory for a line of %s", metrics->path);
    }
    XP_TRY(write_lines(metrics));
    xp_status status = metrics->events ? add_events(metrics, record) : XP_OK;
    if (status != XP_OK) {
        xp_tfevents_destroy(metrics->events);
        metrics->events = NULL;
        return xp_error_context(status, "no more TensorBoard events");
    }
    return XP_OK;
}

xp_status xp_metrics_sync(xp_metrics *metrics) {
    return fdatasync(metrics->fd) == 0
               ? XP_OK
               : xp_error(XP_EIO, "cannot sync %s: %s", metrics->path, strerror(errno));
}

void xp_metrics_close(xp_metrics *metrics) {
    if (!metrics)
        return;
    if (metrics->fd >= 0)
        close(metrics->fd);
    xp_tfevents_destroy(metrics->events);
    xp_text_free(&metrics->lines);
    free(metrics->kept);
    free(metrics->path);
    free(metrics);
}
