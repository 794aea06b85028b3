/* What is not as it was when a checkpoint was written: allowed, but worth a word. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "core/text.h"
#include "train/run_state.h"

/* Changes that are allowed, but alter what comes next. */
static void warn_if_changed(xp_trainer *t, const xp_ckpt *ckpt, const char *key, const char *now,
                            const char *effect) {
    const char *saved = xp_ckpt_value_get(ckpt, key);
    if (saved && now && strcmp(saved, now) != 0)
        xp_trainer_warn(t, "%s was %s in the checkpoint and is %s now: %s", key, saved, now,
                        effect);
}

/* The rows that a run reads, without reading them all: a few, evenly spread. A row that cannot be
 * read is an error when its step comes, not now. */
xp_status xp_trainer_hash_data(xp_trainer *t) {
    enum { N_SAMPLES = 32 };
    const xp_dataset *data = t->shared->data;
    int64_t seq_len = xp_dataset_seq_len(data), n_rows = xp_dataset_n_rows(data);
    int32_t *row = calloc((size_t)seq_len + 1, 4 * sizeof *row);
    if (!row)
        return xp_error(XP_ENOMEM, "no memory for a row of the data");
    t->data_hash = 0;
    for (int64_t i = 0; i < N_SAMPLES && i < n_rows; i++) {
        int64_t n = n_rows > N_SAMPLES ? n_rows / N_SAMPLES * i : i;
        if (xp_dataset_row(data, n, row, row + seq_len, row + 2 * seq_len, row + 3 * seq_len) ==
            XP_OK)
            t->data_hash = XXH64(row, (size_t)seq_len * sizeof *row, t->data_hash);
    }
    xp_error_clear();
    free(row);
    return XP_OK;
}

/* Other data than the checkpoint was trained on: what is the same under another name is no change.
 */
static void warn_about_data(xp_trainer *t, const xp_ckpt *ckpt) {
    static const char *const keys[] = {"debug.seed", "training.seq_len", "training.shuffle"};
    int64_t now[] = {t->config->debug.seed, t->config->training.seq_len,
                     xp_train_shuffles(t->config)};
    bool same_order = true;
    char number[32];
    for (int i = 0; i < 3; i++) {
        const char *saved = xp_ckpt_value_get(ckpt, keys[i]);
        snprintf(number, sizeof number, "%lld", (long long)now[i]);
        same_order = same_order && saved && strcmp(saved, number) == 0;
    }
    if (xp_ckpt_value_get(ckpt, "training.shuffle")) {
        bool was = strcmp(xp_ckpt_value_get(ckpt, "training.shuffle"), "0") != 0;
        if (was != (now[2] != 0))
            xp_trainer_warn(t,
                            "training.shuffle was %s in the checkpoint and is %s now: some rows "
                            "repeat and others are left out",
                            was ? "on" : "off", now[2] ? "on" : "off");
    }
    const char *tokens = xp_ckpt_value_get(ckpt, "data.n_tokens");
    const char *hash = xp_ckpt_value_get(ckpt, "data.xxh64");
    snprintf(number, sizeof number, "%lld", (long long)xp_dataset_n_tokens(t->shared->data));
    if (tokens && strcmp(tokens, number) != 0) {
        xp_trainer_warn(t,
                        "the data had %s tokens in the checkpoint and has %s now (files or the "
                        "tokenizer changed): it goes on at the same row number, some rows may "
                        "repeat",
                        tokens, number);
        return;
    }
    snprintf(number, sizeof number, "%016" PRIx64, t->data_hash);
    if (hash && same_order && strcmp(hash, number) != 0)
        xp_trainer_warn(t,
                        "the data or its tokenizer is not what the checkpoint was trained on: the "
                        "number of tokens is the same, their ids are not");
}

/* A schedule of another length has another rate from here on. */
static xp_status warn_about_schedule(xp_trainer *t, const xp_ckpt *ckpt) {
    int64_t was = 0, now = xp_schedule_total(&t->schedule);
    if (!xp_ckpt_value_get(ckpt, "lr_scheduler.total_steps"))
        return XP_OK;
    if (!xp_parse_i64(xp_ckpt_value_get(ckpt, "lr_scheduler.total_steps"), &was) || was == now ||
        was < 1)
        return XP_OK;
    xp_config before = *t->config;
    xp_schedule schedule;
    before.lr_scheduler.total_steps = was;
    XP_TRY(xp_schedule_from_config(&before, &schedule));
    int64_t step = t->step - t->schedule_from;
    double lr = t->config->optimizer.lr;
    xp_trainer_warn(t,
                    "the learning rate's schedule was %lld steps long in the checkpoint and is "
                    "%lld now: the next step has %.3g instead of %.3g; lr_scheduler.total_steps "
                    "= %lld keeps the old one",
                    (long long)was, (long long)now, lr * xp_schedule_factor(&t->schedule, step),
                    lr * xp_schedule_factor(&schedule, step), (long long)was);
    return XP_OK;
}

static void warn_about_changes(xp_trainer *t, const xp_ckpt *ckpt) {
    char number[32];
    snprintf(number, sizeof number, "%lld", (long long)t->config->debug.seed);
    warn_if_changed(t, ckpt, "debug.seed", number, "the order of shuffled data changes");
    snprintf(number, sizeof number, "%lld", (long long)t->config->training.seq_len);
    warn_if_changed(t, ckpt, "training.seq_len", number, "rows are cut anew, some data may repeat");
    snprintf(number, sizeof number, "%lld", (long long)t->run.global_batch);
    warn_if_changed(t, ckpt, "training.global_batch_size", number,
                    "the data goes on after the rows already read");
    warn_if_changed(t, ckpt, "training.dataset_path", t->config->training.dataset_path,
                    "the data goes on at the same row number");
}

xp_status xp_trainer_compare(xp_trainer *t, const xp_ckpt *ckpt, bool data, bool schedule) {
    warn_about_changes(t, ckpt);
    if (data)
        warn_about_data(t, ckpt);
    return schedule ? warn_about_schedule(t, ckpt) : XP_OK;
}
