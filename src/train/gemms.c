/* The GEMM algorithms of a run stay what they are across stop and resume. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "config/tuned.h"
#include "core/text.h"
#include "ops/gemm_choice.h"
#include "train/gemms.h"
#include "train/run_state.h"
#include "tune/tuned_for.h"

xp_gemms_verdict xp_gemms_judge(const xp_gemms_in_force *saved, const xp_gemms_in_force *now) {
    if (!saved->algorithms || !saved->tuned_for || !now->tuned_for[0])
        return XP_GEMMS_SAME; /* no GPU, or a checkpoint from before */
    const bool same_list = strcmp(saved->algorithms, now->algorithms) == 0;
    const bool none = same_list && !saved->algorithms[0];
    if (strcmp(saved->tuned_for, now->tuned_for) != 0)
        return none ? XP_GEMMS_SAME : XP_GEMMS_LOST;
    return same_list ? XP_GEMMS_SAME : XP_GEMMS_KEEP;
}

xp_status xp_trainer_open_gemms(xp_trainer *t) {
    const xp_string_list *list = &t->config->gemm.algorithms;
    xp_text text = {0};
    for (int i = 0; i < list->n; i++)
        xp_text_printf(&text, "%s%s", i > 0 ? "," : "", list->items[i]);
    xp_text_puts(&text, "");
    t->gemms = text.failed ? NULL : strdup(text.data ? text.data : "");
    t->gemm_for = calloc(1, XP_TUNED_FOR_MAX);
    xp_text_free(&text);
    if (!t->gemms || !t->gemm_for)
        return xp_error(XP_ENOMEM, "no memory for gemm.algorithms");
    if (xp_run_device_kind(t->config) != XP_DEVICE_CUDA)
        return XP_OK;
    xp_tune_facts facts;
    XP_TRY(xp_tune_facts_of(t->config, t->n_local_ranks, t->world != NULL, t->n_threads, &facts));
    xp_gemm_tuned_for_print(&facts, t->gemm_for, XP_TUNED_FOR_MAX);
    return XP_OK;
}

/* The list that the checkpoint was trained with, in place of the configuration's. */
static xp_status keep(xp_trainer *t, const char *saved) {
    xp_gemm_choice choices[XP_GEMM_CHOICES_MAX];
    char *rest = strdup(saved), *copy = strdup(saved);
    xp_status status = rest && copy ? XP_OK : xp_error(XP_ENOMEM, "no memory for gemm.algorithms");
    int n = 0;
    char *at = rest;
    for (char *item; status == XP_OK && (item = strsep(&at, ",")) != NULL && item[0];) {
        status = n < XP_GEMM_CHOICES_MAX
                     ? xp_gemm_choice_parse(item, &choices[n])
                     : xp_error(XP_EFORMAT, "the checkpoint's gemm.algorithms are too many");
        n++;
    }
    free(rest);
    if (status == XP_OK)
        status = xp_ops_gemm_choose(t->device, choices, n);
    if (status != XP_OK) {
        free(copy);
        return status;
    }
    free(t->gemms);
    t->gemms = copy;
    xp_trainer_say(t,
                   "gemm: the algorithms of the checkpoint are kept (%d GEMM shape%s of "
                   "gemm.algorithms), so that its bits are; what was tuned since serves new runs",
                   n, n == 1 ? "" : "s");
    return XP_OK;
}

xp_status xp_trainer_keep_gemms(xp_trainer *t, const xp_ckpt *ckpt) {
    const xp_gemms_in_force saved = {xp_ckpt_value_get(ckpt, "gemm.algorithms"),
                                     xp_ckpt_value_get(ckpt, "gemm.tuned_for")};
    const xp_gemms_in_force now = {t->gemms, t->gemm_for};
    switch (xp_gemms_judge(&saved, &now)) {
    case XP_GEMMS_SAME:
        return XP_OK;
    case XP_GEMMS_KEEP:
        return keep(t, saved.algorithms);
    case XP_GEMMS_LOST:
        break;
    }
    xp_trainer_warn(t,
                    "the checkpoint's GEMM algorithms (gemm.algorithms) are of \"%s\", this run "
                    "has \"%s\": results differ by rounding from here on",
                    saved.tuned_for, now.tuned_for);
    return XP_OK;
}
