#include "checkpoint/save_job.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <xxhash.h>
#include "checkpoint/agree.h"
#include "checkpoint/manifest.h"
#include "checkpoint/publish.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/st_dtype.h"
#include "core/error.h"
#include "core/file.h"
#include "expar/version.h"

#define CHUNK_BYTES (1 << 20) /* hashed and written while it is in the cache */

struct xp_save_job {
    xp_arena *arena;
    xp_ckpt_save_args args; /* names and values copied into the arena */
    xp_step_paths paths;
    pthread_t thread;
    bool running;
    atomic_bool done;
    /* The thread's result, read after joining. */
    xp_status status;
    char error[1024];
    char warning[1024]; /* what went wrong after the publish; rank 0 */
    xp_text packed;
};

static xp_status no_memory(void) {
    return xp_error(XP_ENOMEM, "no memory to start a checkpoint");
}

static int64_t piece_elements(const xp_ckpt_piece *piece) {
    int64_t n = 1;
    for (int d = 0; d < piece->n_dims; d++)
        n *= piece->shape[d];
    return n;
}

static xp_status check_pieces(const xp_ckpt_save_args *args) {
    if (args->folder == NULL || args->step < 0)
        return xp_error(XP_EINVAL, "a checkpoint needs a folder and a step >= 0");
    for (int64_t i = 0; i < args->n_pieces; i++) {
        const xp_ckpt_piece *piece = &args->pieces[i];
        if (piece->n_dims < 0 || piece->n_dims > XP_MANIFEST_DIMS)
            return xp_error(XP_EINVAL, "checkpoint: '%.200s' has %d dimensions", piece->name,
                            piece->n_dims);
        const xp_st_dtype *type = xp_st_dtype_of(piece->dtype);
        int64_t n, n_bytes;
        if (type == NULL || !xp_st_shape_sizes(type, piece->n_dims, piece->shape, &n, &n_bytes))
            return xp_error(XP_EINVAL, "checkpoint: '%.200s' has no type or an impossible shape",
                            piece->name);
        if (piece->first < 0 || piece->n < 0 || piece->first > n || piece->n > n - piece->first)
            return xp_error(
                XP_EINVAL,
                "checkpoint: piece [%lld, %lld) of '%.200s' is outside its %lld elements",
                (long long)piece->first, (long long)(piece->first + piece->n), piece->name,
                (long long)n);
    }
    return XP_OK;
}

/** Own copies of all strings, so that the caller's may go while the thread writes. */
static xp_status copy_args(xp_save_job *job, const xp_ckpt_save_args *args) {
    xp_arena *arena = job->arena;
    xp_ckpt_piece *pieces = xp_arena_alloc(arena, ((size_t)args->n_pieces + 1) * sizeof *pieces);
    xp_ckpt_value *values = xp_arena_alloc(arena, ((size_t)args->n_values + 1) * sizeof *values);
    job->args.folder = xp_arena_strdup(arena, args->folder);
    if (pieces == NULL || values == NULL || job->args.folder == NULL)
        return no_memory();
    for (int64_t i = 0; i < args->n_pieces; i++) {
        pieces[i] = args->pieces[i];
        pieces[i].name = xp_arena_strdup(arena, args->pieces[i].name);
        if (pieces[i].name == NULL)
            return no_memory();
    }
    for (int i = 0; i < args->n_values; i++) {
        values[i].key = xp_arena_strdup(arena, args->values[i].key);
        values[i].value = xp_arena_strdup(arena, args->values[i].value);
        if (values[i].key == NULL || values[i].value == NULL)
            return no_memory();
    }
    job->args.pieces = pieces;
    job->args.values = values;
    return xp_step_paths_create(args->folder, args->step, &job->paths);
}

/** Rank 0 before anyone writes: what crashed saves left goes away, and an empty temporary folder
 * appears. */
static xp_status prepare_folder(const xp_save_job *job) {
    XP_TRY(xp_folder_create(job->args.folder));
    XP_TRY(xp_steps_clean(job->args.folder));
    if (mkdir(job->paths.temp, 0777) == 0)
        return XP_OK;
    char text[128];
    return xp_error(XP_EIO, "cannot create %s: %s", job->paths.temp,
                    strerror_r(errno, text, sizeof text));
}

static xp_status declare_pieces(const xp_save_job *job, xp_st_writer *writer) {
    for (int64_t i = 0; i < job->args.n_pieces; i++) {
        const xp_ckpt_piece *piece = &job->args.pieces[i];
        int64_t n = piece_elements(piece);
        const char *name =
            xp_manifest_piece_name(job->arena, piece->name, piece->first, piece->n, n);
        if (name == NULL)
            return no_memory();
        if (piece->n == 0)
            continue;
        bool whole = piece->n == n;
        XP_TRY(xp_st_writer_declare(writer, name, piece->dtype, whole ? piece->n_dims : 1,
                                    whole ? piece->shape : &piece->n));
    }
    return XP_OK;
}

static xp_status not_finite(const xp_ckpt_piece *piece, int64_t element, uint32_t bits) {
    xp_text place = {0};
    int64_t n = piece_elements(piece);
    for (int d = 0; d < piece->n_dims; d++) {
        n /= piece->shape[d];
        xp_text_printf(&place, "%s%lld", d > 0 ? ", " : "", (long long)(element / n));
        element %= n;
    }
    xp_status status =
        xp_error(XP_ENUMERIC, "'%.200s' holds %s at [%s]; nothing of this step is published",
                 piece->name, bits & 0x7fffff ? "NaN" : "Inf", place.data ? place.data : "");
    xp_text_free(&place);
    return status;
}

/** A value that is not finite would be trained on and saved for ever: it has all exponent bits. */
static xp_status check_finite(const xp_ckpt_piece *piece, const char *data, size_t n_bytes) {
    if (piece->dtype != XP_F32)
        return XP_OK;
    uint32_t bits, found = 0;
    for (size_t i = 0; i < n_bytes; i += sizeof bits) {
        memcpy(&bits, data + i, sizeof bits);
        found |= (bits & 0x7f800000) == 0x7f800000;
    }
    if (!found)
        return XP_OK;
    int64_t at = (data - (const char *)piece->data) / (int64_t)sizeof bits;
    for (;; at++, data += sizeof bits) {
        memcpy(&bits, data, sizeof bits);
        if ((bits & 0x7f800000) == 0x7f800000)
            return not_finite(piece, piece->first + at, bits);
    }
}

/* A piece and its XXH64; `state` is anyone's. */
static xp_status write_piece(const xp_ckpt_piece *piece, xp_st_writer *writer, XXH64_state_t *state,
                             uint64_t *hash) {
    XXH64_reset(state, 0);
    const char *data = piece->data;
    size_t left = (size_t)piece->n * xp_dtype_bytes(piece->dtype);
    while (left > 0) {
        size_t n = left < CHUNK_BYTES ? left : CHUNK_BYTES;
        XP_TRY(check_finite(piece, data, n));
        XXH64_update(state, data, n);
        XP_TRY(xp_st_writer_data(writer, data, n));
        data += n;
        left -= n;
    }
    *hash = XXH64_digest(state);
    return XP_OK;
}

static xp_status fill_shard(xp_save_job *job, xp_st_writer *writer, uint64_t *hashes) {
    XP_TRY(xp_st_writer_add_metadata(writer, "format", "expar-checkpoint"));
    XP_TRY(declare_pieces(job, writer));
    XXH64_state_t *state = XXH64_createState();
    xp_status status = state != NULL ? XP_OK : no_memory();
    for (int64_t i = 0; i < job->args.n_pieces && status == XP_OK; i++)
        status = write_piece(&job->args.pieces[i], writer, state, &hashes[i]);
    XXH64_freeState(state);
    XP_TRY(status);
    XP_TRY(xp_st_writer_finish(writer));
    xp_manifest_file file = {0};
    xp_st_writer_result(writer, &file.n_bytes, &file.xxh64);
    return xp_manifest_pack(&file, job->args.pieces, hashes, job->args.n_pieces, &job->packed);
}

static xp_status write_shard(xp_save_job *job) {
    const char *name = xp_manifest_shard_name(job->arena, xp_agree_rank(job->args.comm));
    char *path = name == NULL ? NULL : xp_path_join(job->paths.temp, name);
    uint64_t *hashes = calloc((size_t)job->args.n_pieces + 1, sizeof *hashes);
    xp_st_writer *writer = NULL;
    xp_status status = path != NULL && hashes != NULL ? XP_OK : no_memory();
    if (status == XP_OK)
        status = xp_st_writer_create(path, &writer);
    if (status == XP_OK)
        status = fill_shard(job, writer, hashes);
    xp_st_writer_destroy(writer);
    free(hashes);
    free(path);
    return status;
}

static void *run_thread(void *context) {
    xp_save_job *job = context;
    job->status = write_shard(job);
    if (job->status == XP_ENUMERIC)
        xp_error_context(job->status, "checkpoint of step %lld", (long long)job->args.step);
    if (job->status != XP_OK)
        snprintf(job->error, sizeof job->error, "%s", xp_last_error());
    atomic_store(&job->done, true);
    return NULL;
}

static xp_status create_job(const xp_ckpt_save_args *args, xp_save_job **job) {
    XP_TRY(check_pieces(args));
    xp_save_job *made = calloc(1, sizeof *made);
    if (made == NULL)
        return no_memory();
    made->args = *args;
    xp_status status = xp_arena_create(&made->arena);
    if (status == XP_OK)
        status = copy_args(made, args);
    if (status != XP_OK) {
        xp_save_job_destroy(made);
        return status;
    }
    *job = made;
    return XP_OK;
}

xp_status xp_save_job_start(const xp_ckpt_save_args *args, xp_status local, xp_save_job **job) {
    xp_save_job *made = NULL;
    bool is_root = xp_agree_rank(args->comm) == 0;
    if (args->comm != NULL)
        xp_comm_set_phase(args->comm, "checkpoint");
    if (local == XP_OK)
        local = create_job(args, &made);
    bool has_folder = false;
    if (local == XP_OK && is_root) {
        local = prepare_folder(made);
        has_folder = local == XP_OK;
    }
    xp_status status = xp_agree(args->comm, local);
    if (status != XP_OK) {
        if (has_folder)
            status = xp_folder_discard(made->paths.temp, status);
        xp_save_job_destroy(made);
        return status;
    }
    if (pthread_create(&made->thread, NULL, run_thread, made) == 0) {
        made->running = true;
    } else {
        /* The others are on their way already: bring the failure to the publish. */
        made->status = XP_ENOMEM;
        snprintf(made->error, sizeof made->error,
                 "cannot start the thread that writes a checkpoint");
        atomic_store(&made->done, true);
    }
    *job = made;
    return XP_OK;
}

xp_status xp_save_job_poll(xp_save_job *job, bool wait, bool *done) {
    if (job->args.comm != NULL)
        xp_comm_set_phase(job->args.comm, "checkpoint");
    int64_t pause_us = 500;
    for (;;) {
        XP_TRY(xp_agree_all(job->args.comm, atomic_load(&job->done), done));
        if (*done || !wait)
            return XP_OK;
        nanosleep(&(struct timespec){.tv_nsec = pause_us * 1000}, NULL);
        if (pause_us < 50000)
            pause_us *= 2;
    }
}

static xp_status make_manifest(const xp_save_job *job, const char *all, const int64_t *offsets,
                               xp_text *text) {
    xp_manifest *manifest;
    XP_TRY(xp_manifest_create(&manifest));
    xp_status status = xp_manifest_merge(all, offsets, xp_agree_size(job->args.comm), manifest);
    manifest->step = job->args.step;
    manifest->expar = XP_VERSION;
    manifest->n_values = job->args.n_values;
    manifest->values = (xp_ckpt_value *)job->args.values;
    if (status == XP_OK)
        status = xp_manifest_to_json(manifest, text);
    xp_manifest_destroy(manifest);
    return status;
}

/** Rank 0: the manifest makes the folder complete, the rename makes it visible. */
static xp_status publish_root(const xp_save_job *job, const char *all, const int64_t *offsets) {
    xp_text text = {0};
    char *path = xp_path_join(job->paths.temp, XP_CKPT_MANIFEST);
    xp_status status = path == NULL ? no_memory() : make_manifest(job, all, offsets, &text);
    if (status == XP_OK)
        status = xp_file_write_atomic(path, text.data, text.length);
    if (status == XP_OK)
        status = xp_folder_publish(job->paths.temp, job->paths.final, job->paths.aside);
    xp_text_free(&text);
    free(path);
    return status;
}

static void join_thread(xp_save_job *job) {
    if (job->running)
        pthread_join(job->thread, NULL);
    job->running = false;
}

/** Rank 0, after the publish: old checkpoints go. What fails here takes
 * nothing from the new checkpoint. */
static void tidy(xp_save_job *job) {
    char *into = NULL;
    xp_status status = XP_OK;
    if (job->args.set_aside_later)
        status = xp_steps_set_aside(job->args.folder, job->args.step, -1, &into);
    free(into);
    if (status == XP_OK)
        status = xp_steps_prune(job->args.folder, job->args.keep_latest_k, job->args.step);
    if (status == XP_OK)
        return;
    snprintf(job->warning, sizeof job->warning, "step-%lld is saved, but another one stays: %s",
             (long long)job->args.step, xp_last_error());
    xp_error_clear();
}

xp_status xp_save_job_publish(xp_save_job *job, bool *published) {
    xp_comm *comm = job->args.comm;
    bool is_root = xp_agree_rank(comm) == 0;
    char *all = NULL;
    int64_t *offsets = NULL;
    *published = false;
    join_thread(job);
    xp_status status = job->status == XP_OK ? XP_OK : xp_error(job->status, "%s", job->error);
    status = xp_agree(comm, status);
    if (status == XP_OK)
        status = xp_agree_gather(comm, &job->packed, &all, &offsets);
    if (status == XP_OK) {
        if (is_root)
            status = publish_root(job, all, offsets);
        status = xp_agree(comm, status);
    }
    free(all);
    free(offsets);
    /* After a lost peer other ranks may still be writing there: the next save tidies. */
    if (status != XP_OK && status != XP_ECOMM && is_root)
        return xp_folder_discard(job->paths.temp, status);
    if (status != XP_OK)
        return status;
    *published = true;
    if (is_root)
        tidy(job);
    return XP_OK;
}

const char *xp_save_job_warning(const xp_save_job *job) {
    return job->warning;
}

int64_t xp_save_job_step(const xp_save_job *job) {
    return job->args.step;
}

void xp_save_job_destroy(xp_save_job *job) {
    if (job == NULL)
        return;
    join_thread(job);
    xp_text_free(&job->packed);
    xp_step_paths_free(&job->paths);
    xp_arena_destroy(job->arena);
    free(job);
}
