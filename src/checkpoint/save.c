#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "checkpoint/agree.h"
#include "checkpoint/publish.h"
#include "checkpoint/save_job.h"
#include "checkpoint/state.h"

#define STAGING_ALIGN 64

xp_status xp_ckpt_save(const xp_ckpt_save_args *args) {
    xp_save_job *job;
    bool done, published;
    XP_TRY(xp_save_job_start(args, XP_OK, &job));
    xp_status status = xp_save_job_poll(job, true, &done);
    if (status == XP_OK)
        status = xp_save_job_publish(job, &published);
    xp_save_job_destroy(job);
    return status;
}

struct xp_ckpt_saver {
    xp_comm *comm;
    char *staging;
    int64_t staging_bytes;
    xp_save_job *job;       /* NULL: none under way */
    int64_t published_step; /* not yet reported to the caller; -1 = none */
    char warning[1024];
};

static int64_t aligned_bytes(const xp_ckpt_piece *piece) {
    int64_t n_bytes = piece->n * (int64_t)xp_dtype_bytes(piece->dtype);
    return (n_bytes + STAGING_ALIGN - 1) / STAGING_ALIGN * STAGING_ALIGN;
}

int64_t xp_ckpt_staging_bytes(const xp_ckpt_piece *pieces, int64_t n_pieces) {
    int64_t n_bytes = 0;
    for (int64_t i = 0; i < n_pieces; i++)
        n_bytes += aligned_bytes(&pieces[i]);
    return n_bytes;
}

xp_status xp_ckpt_saver_create(xp_comm *comm, xp_ckpt_saver **saver) {
    xp_ckpt_saver *made = calloc(1, sizeof *made);
    if (made == NULL)
        return xp_error(XP_ENOMEM, "no memory for the asynchronous checkpoint saver");
    made->comm = comm;
    made->published_step = -1;
    *saver = made;
    return XP_OK;
}

static xp_status end_job(xp_ckpt_saver *saver, bool wait) {
    bool done, published = false;
    XP_TRY(xp_save_job_poll(saver->job, wait, &done));
    if (!done)
        return XP_OK;
    xp_status status = xp_save_job_publish(saver->job, &published);
    if (published)
        saver->published_step = xp_save_job_step(saver->job);
    snprintf(saver->warning, sizeof saver->warning, "%s", xp_save_job_warning(saver->job));
    xp_save_job_destroy(saver->job);
    saver->job = NULL;
    return status;
}

static xp_status grow_staging(xp_ckpt_saver *saver, int64_t n_bytes) {
    if (n_bytes <= saver->staging_bytes)
        return XP_OK;
    free(saver->staging);
    saver->staging_bytes = 0;
    saver->staging = aligned_alloc(STAGING_ALIGN, (size_t)n_bytes);
    if (saver->staging == NULL)
        return xp_error(XP_ENOMEM,
                        "no memory for %.2f GiB of checkpoint staging; checkpoint.async_mode = "
                        "\"disabled\" needs none",
                        (double)n_bytes / 0x1p30);
    saver->staging_bytes = n_bytes;
    return XP_OK;
}

static void stage_pieces(char *staging, const xp_ckpt_save_args *args, xp_ckpt_piece *staged) {
    for (int64_t i = 0; i < args->n_pieces; i++) {
        staged[i] = args->pieces[i];
        size_t n_bytes = (size_t)staged[i].n * xp_dtype_bytes(staged[i].dtype);
        if (n_bytes == 0)
            continue;
        staged[i].data = staging;
        memcpy(staging, args->pieces[i].data, n_bytes);
        staging += aligned_bytes(&staged[i]);
    }
}

xp_status xp_ckpt_saver_start(xp_ckpt_saver *saver, const xp_ckpt_save_args *args) {
    if (saver->job != NULL)
        XP_TRY(end_job(saver, true));
    if (args->pieces_stay) {
        xp_ckpt_save_args own = *args;
        own.comm = saver->comm;
        return xp_save_job_start(&own, XP_OK, &saver->job);
    }
    xp_ckpt_piece *staged = calloc((size_t)args->n_pieces + 1, sizeof *staged);
    xp_status status =
        staged != NULL ? grow_staging(saver, xp_ckpt_staging_bytes(args->pieces, args->n_pieces))
                       : xp_error(XP_ENOMEM, "no memory to start a checkpoint");
    if (status == XP_OK)
        stage_pieces(saver->staging, args, staged);
    xp_ckpt_save_args staged_args = *args;
    staged_args.pieces = staged;
    staged_args.comm = saver->comm;
    status = xp_save_job_start(&staged_args, status, &saver->job);
    free(staged);
    return status;
}

static xp_status report(xp_ckpt_saver *saver, bool wait, int64_t *published_step) {
    xp_status status = saver->job != NULL ? end_job(saver, wait) : XP_OK;
    *published_step = saver->published_step;
    saver->published_step = -1;
    return status;
}

xp_status xp_ckpt_saver_poll(xp_ckpt_saver *saver, int64_t *published_step) {
    return report(saver, false, published_step);
}

xp_status xp_ckpt_saver_wait(xp_ckpt_saver *saver, int64_t *published_step) {
    return report(saver, true, published_step);
}

xp_status xp_ckpt_saver_wait_written(xp_ckpt_saver *saver) {
    bool done;
    return saver->job != NULL ? xp_save_job_poll(saver->job, true, &done) : XP_OK;
}

bool xp_ckpt_saver_is_busy(const xp_ckpt_saver *saver) {
    return saver->job != NULL;
}

const char *xp_ckpt_saver_warning(const xp_ckpt_saver *saver) {
    return saver->warning;
}

xp_status xp_ckpt_set_aside(const char *folder, int64_t after, int64_t except, char **into) {
    return xp_steps_set_aside(folder, after, except, into);
}

void xp_ckpt_saver_destroy(xp_ckpt_saver *saver) {
    if (saver == NULL)
        return;
    xp_save_job_destroy(saver->job);
    free(saver->staging);
    free(saver);
}
