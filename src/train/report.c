/* What a run tells while it trains: step lines, metrics, and the summary at its end. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/file.h"
#include "train/run_state.h"

#define GIB ((double)(1 << 30))

static double physical_memory(void) {
    long pages = sysconf(_SC_PHYS_PAGES);
    long page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (double)pages * (double)page : 1;
}

static void fill_rates(xp_trainer *t, double time_s, int64_t steps, xp_step_record *record) {
    bool on_cpu = xp_device_get_kind(t->device) == XP_DEVICE_CPU;
    int64_t memory = on_cpu ? xp_process_peak_rss() : xp_device_peak_bytes(t->device);
    int64_t tokens = steps * t->run.n_microbatches * t->run.local_batch * t->run.seq_len;
    record->memory_gib = (double)memory / GIB;
    double total = on_cpu ? physical_memory() : (double)xp_device_total_bytes(t->device);
    record->memory_percent = total > 0 ? 100 * (double)memory / total : 0;
    record->tps = time_s > 0 ? (double)tokens / time_s : 0;
    record->tflops = record->tps * xp_arch_flops_per_token(&t->run.arch, t->run.seq_len) / 1e12;
    record->mfu_percent = t->peak_tflops > 0 ? 100 * record->tflops / t->peak_tflops : -1;
}

static bool due(int64_t step, int64_t every) {
    return every > 0 && step % every == 0;
}

static void remember_loss(xp_trainer *t, double loss) {
    t->recent[t->n_recent % XP_N_RECENT] = loss;
    t->n_recent++;
}

double xp_trainer_recent_loss(const xp_trainer *t) {
    int64_t n = t->n_recent < XP_N_RECENT ? t->n_recent : XP_N_RECENT;
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += t->recent[i];
    return n > 0 ? sum / (double)n : NAN;
}

/* Of the whole step, with validation and checkpoints. The first step after a start is longer than others, and the
 * validation before it would stand for one before every step. */
static double step_mean_s(const xp_trainer *t) {
    const int64_t n = t->step - t->first_step;
    return n > 1 ? (t->run_s - t->first_step_s) / (double)(n - 1)
                 : t->interval_s / (double)t->interval_steps;
}

/* Training does not end for want of a line: what could not be written is tried again. */
static void write_metrics(xp_trainer *t, const xp_step_record *record) {
    xp_status status = xp_metrics_add(t->metrics, record);
    if (status != XP_OK && !t->metrics_fail)
        xp_trainer_warn(t, "%s; training goes on, later steps try again", xp_last_error());
    if (status == XP_OK && t->metrics_fail)
        xp_trainer_say(t, "metrics are written again");
    t->metrics_fail = status != XP_OK;
}

/* What follows the step line where the terminal has room for it. */
enum { PART_LR, PART_TOTAL, PART_TIME, PART_ETA, N_PARTS };

static void format_parts(const xp_trainer *t, const xp_step_record *record,
                         char parts[N_PARTS][64]) {
    char number[32];
    const int64_t left = t->config->training.steps - t->step;
    snprintf(parts[PART_LR], 64, "lr: %.2e", record->lr);
    if (t->n_ranks > 1) {
        xp_format_thousands(record->tps * t->n_ranks, number);
        snprintf(parts[PART_TOTAL], 64, "total: %s", number);
    }
    snprintf(parts[PART_TIME], 64, "time: %.3gs", t->interval_s / (double)t->interval_steps);
    if (left > 0) {
        xp_format_duration(step_mean_s(t) * (double)left, number);
        snprintf(parts[PART_ETA], 64, "ETA: %s", number);
    }
}

/* The ETA has room first. A part without room keeps those after it out. */
static void add_parts(char parts[N_PARTS][64], int used, int columns, xp_text *line) {
    static const int by_need[N_PARTS] = {PART_ETA, PART_LR, PART_TOTAL, PART_TIME};
    bool fits = true;
    for (int i = 0; i < N_PARTS; i++) {
        char *part = parts[by_need[i]];
        if (part[0] == '\0')
            continue;
        fits = fits && (columns == 0 || used + 2 + (int)strlen(part) <= columns);
        used += 2 + (int)strlen(part);
        if (!fits)
            part[0] = '\0';
    }
    for (int i = 0; i < N_PARTS; i++)
        if (parts[i][0] != '\0')
            xp_text_printf(line, "  %s", parts[i]);
}

static void print_step(xp_trainer *t, const xp_step_record *record) {
    xp_text line = {0}, plain = {0};
    char parts[N_PARTS][64] = {0};
    xp_metrics_line(record, false, &plain);
    xp_metrics_line(record, xp_log_has_color(t->log), &line);
    format_parts(t, record, parts);
    add_parts(parts, (int)plain.length, xp_log_columns(t->log), &line);
    xp_trainer_say(t, "%s", line.failed ? "step line: out of memory" : line.data);
    xp_text_free(&line);
    xp_text_free(&plain);
}

void xp_trainer_report(xp_trainer *t, xp_step_record *record) {
    remember_loss(t, record->loss);
    t->interval_steps++;
    /* Rates are of training alone: validation is reported with its own time. */
    double training_s = record->time_s - record->validation_s;
    t->interval_s += training_s;
    fill_rates(t, training_s, 1, record);
    bool first = t->step == t->first_step + 1;
    record->first_of_start = first;
    t->run_s += record->time_s;
    if (first)
        t->first_step_s = record->time_s;
    record->resumed_step = t->first_step;
    if (t->metrics)
        write_metrics(t, record);
    char note[96];
    char rate[32];
    xp_format_thousands(record->tps * t->n_ranks, rate);
    bool line = t->step == 1 || first || due(t->step, t->config->metrics.log_freq);
    if (line && t->log) {
        fill_rates(t, t->interval_s, t->interval_steps, record);
        print_step(t, record);
    }
    if (line) {
        t->interval_steps = 0;
        t->interval_s = 0;
    }
    snprintf(note, sizeof note, "loss %.4f  %s tok/s", record->loss, rate);
    xp_progress_update(t->progress, t->step, note);
}

xp_status xp_trainer_open_metrics(xp_trainer *t) {
    if (!t->leads)
        return XP_OK;
    const xp_config *config = t->config;
    const char *file = config->metrics.log_file;
    const char *folder = config->metrics.save_tb_folder;
    char *path = xp_path_join(t->dump, file ? file : "metrics.jsonl");
    char *tb = xp_path_join(t->dump, folder ? folder : "tb");
    xp_metrics_args args = {
        .jsonl_path = path,
        .tensorboard_folder = config->metrics.enable_tensorboard ? tb : NULL,
        .resumed_step = t->step,
        .keep_earlier = t->first_step == 0 || t->went_back,
    };
    xp_status status = path && tb ? xp_metrics_open(&args, &t->metrics)
                                  : xp_error(XP_ENOMEM, "no memory for a path");
    if (status == XP_OK && xp_metrics_kept(t->metrics))
        xp_trainer_say(t, "metrics: those of an earlier run are kept as %s",
                       xp_metrics_kept(t->metrics));
    free(path);
    free(tb);
    XP_TRY(status);
    return xp_progress_create(stderr, t->step, config->training.steps, &t->progress);
}

void xp_trainer_summarise(xp_trainer *t, double seconds) {
    int64_t steps = t->step - t->first_step;
    double tokens = (double)(steps * t->run.global_batch * t->run.seq_len);
    char count[32];
    char rate[32];
    char time[32];
    xp_format_thousands((double)t->tokens_seen, count);
    xp_format_thousands(seconds > 0 ? tokens / seconds : 0, rate);
    xp_format_duration(seconds, time);
    bool complete = t->step >= t->config->training.steps;
    xp_trainer_say(t,
                   "%s: step %lld of %lld, %s tokens seen, loss %.4f (mean of the last %d steps); "
                   "%lld steps in %s, %s tok/s",
                   complete ? "done" : "stopped", (long long)t->step,
                   (long long)t->config->training.steps, count, xp_trainer_recent_loss(t),
                   (int)(t->n_recent < XP_N_RECENT ? t->n_recent : XP_N_RECENT), (long long)steps,
                   time, rate);
    if (t->last_published < 0)
        xp_trainer_say(t, "nothing is saved: checkpoint.enable is off");
    else if (!complete) /* the line of the checkpoint itself has come already */
        xp_trainer_say(t, "to go on: the same command resumes from step-%lld",
                       (long long)t->last_published);
    xp_trainer_say(t, "metrics: %s/%s", t->dump,
                   t->config->metrics.log_file ? t->config->metrics.log_file : "metrics.jsonl");
}
