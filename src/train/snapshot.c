#include "train/snapshot.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/arena.h"

struct xp_snapshot {
    const xp_run *run;
    xp_arena *arena;       /* names */
    xp_ckpt_piece *pieces; /* parameters, first moments, second moments (n_own each), bias */
    xp_ckpt_piece *given;  /* what the last collect() handed out */
    int64_t n_own;
    int n_bias;
    xp_staging *staging; /* borrowed */
    float *
        mirror; /* host copy of masters and moments when the state is no such arrays that the host sees */
    int64_t mirror_elements;
    float *bias;        /* [n_bias, E] borrowed; what training changes */
    float *bias_mirror; /* what the pieces point at when there is a mirror */
};

static const char *const prefixes[3] = {"param", "exp_avg", "exp_avg_sq"};

/* ---- listing ----------------------------------------------------------------------------- */

/* A chunk's three arrays as the host sees them. */
typedef struct host_chunk {
    int64_t first, n;
    float *arrays[3];
} host_chunk;

static bool on_host(const xp_run *run) {
    return xp_device_host_accessible(run->device) && run->dtype == XP_F32;
}

static host_chunk see_chunk(const xp_snapshot *s, int group, int64_t mirror_at) {
    xp_shard_chunk chunk = xp_shard_get_chunk(s->run->shard, group);
    host_chunk out = {.first = chunk.first, .n = chunk.n};
    float *const device_arrays[3] = {chunk.param, chunk.m, chunk.v};
    for (int i = 0; i < 3; i++)
        out.arrays[i] =
            on_host(s->run) ? device_arrays[i] : s->mirror + i * s->mirror_elements + mirror_at;
    return out;
}

/* Part of a slice inside a chunk; n <= 0 when they do not meet. */
static int64_t overlap(const xp_param_slice *slice, const host_chunk *chunk, int64_t *begin) {
    int64_t end = slice->offset + slice->n_elements;
    int64_t chunk_end = chunk->first + chunk->n;
    *begin = slice->offset > chunk->first ? slice->offset : chunk->first;
    return (end < chunk_end ? end : chunk_end) - *begin;
}

static xp_status add_slice(xp_snapshot *s, const xp_param_slice *slice, const host_chunk *chunk,
                           int64_t at) {
    int64_t begin = 0;
    int64_t n = overlap(slice, chunk, &begin);
    for (int i = 0; i < 3; i++) {
        const char *name = xp_arena_printf(s->arena, "%s/%s", prefixes[i], slice->hf_name);
        if (!name)
            return xp_error(XP_ENOMEM, "no memory for the checkpoint's names");
        s->pieces[at + i * s->n_own] = (xp_ckpt_piece){
            .name = name,
            .dtype = XP_F32,
            .n_dims = slice->n_dims,
            .shape = {slice->shape[0], slice->n_dims > 1 ? slice->shape[1] : 0},
            .first = begin - slice->offset,
            .n = n,
            .data = chunk->arrays[i] + (begin - chunk->first),
        };
    }
    return XP_OK;
}

/* Every slice of this rank's chunks, counted (count only) or listed. */
static xp_status walk(xp_snapshot *s, bool list, int64_t *n_slices) {
    const xp_param_table *table = xp_model_params(s->run->model);
    int64_t at = 0;
    int64_t mirror_at = 0;
    for (int g = 0; g < xp_param_table_n_groups(table); g++) {
        const xp_param_group *group = xp_param_table_group(table, g);
        host_chunk chunk = see_chunk(s, g, mirror_at);
        mirror_at += chunk.n;
        for (int p = group->first_param; p < group->first_param + group->n_params; p++) {
            for (int i = 0; i < xp_param_table_param(table, p)->n_slices; i++) {
                xp_param_slice slice;
                int64_t begin = 0;
                xp_param_table_slice(table, p, i, &slice);
                if (overlap(&slice, &chunk, &begin) <= 0)
                    continue;
                if (list)
                    XP_TRY(add_slice(s, &slice, &chunk, at));
                at++;
            }
        }
    }
    *n_slices = at;
    return XP_OK;
}

static size_t bias_bytes(const xp_snapshot *s) {
    return (size_t)s->n_bias * (size_t)s->run->arch.n_experts * sizeof(float);
}

static xp_status list_bias(xp_snapshot *s, float *bias) {
    int64_t n_experts = s->run->arch.n_experts;
    s->bias = bias;
    if (!on_host(s->run) && bias) {
        s->bias_mirror = malloc(bias_bytes(s));
        if (!s->bias_mirror)
            return xp_error(XP_ENOMEM, "no memory for a host copy of the expert bias");
        bias = s->bias_mirror;
    }
    for (int l = 0; l < s->n_bias; l++) {
        const char *name = xp_arena_printf(s->arena, "expert_bias/%d", l);
        if (!name)
            return xp_error(XP_ENOMEM, "no memory for the checkpoint's names");
        s->pieces[3 * s->n_own + l] = (xp_ckpt_piece){
            .name = name,
            .dtype = XP_F32,
            .n_dims = 1,
            .shape = {n_experts},
            .n = n_experts,
            .data = bias + l * n_experts,
        };
    }
    return XP_OK;
}

static xp_status make_mirror(xp_snapshot *s) {
    const xp_param_table *table = xp_model_params(s->run->model);
    for (int g = 0; g < xp_param_table_n_groups(table); g++)
        s->mirror_elements += xp_shard_get_chunk(s->run->shard, g).n;
    if (on_host(s->run))
        return XP_OK;
    s->mirror = calloc((size_t)s->mirror_elements + 1, 3 * sizeof(float));
    return s->mirror ? XP_OK : xp_error(XP_ENOMEM, "no memory for a host copy of the optimizer");
}

static xp_status list_pieces(xp_snapshot *s, float *bias) {
    XP_TRY(xp_arena_create(&s->arena));
    XP_TRY(make_mirror(s));
    XP_TRY(walk(s, false, &s->n_own));
    s->n_bias = bias ? (int)s->run->arch.n_layers : 0;
    size_t n = (size_t)(3 * s->n_own + s->n_bias + 1);
    s->pieces = calloc(n, sizeof *s->pieces);
    s->given = calloc(n, sizeof *s->given);
    if (!s->pieces || !s->given)
        return xp_error(XP_ENOMEM, "no memory for the checkpoint's %zu pieces", n);
    XP_TRY(walk(s, true, &s->n_own));
    return list_bias(s, bias);
}

xp_status xp_snapshot_create(const xp_run *run, xp_staging *staging, float *bias,
                             xp_snapshot **snapshot) {
    xp_snapshot *s = calloc(1, sizeof *s);
    if (!s)
        return xp_error(XP_ENOMEM, "no memory for the checkpoint's tables");
    s->run = run;
    s->staging = staging;
    xp_status status = list_pieces(s, bias);
    if (status != XP_OK) {
        xp_snapshot_destroy(s);
        return status;
    }
    *snapshot = s;
    return XP_OK;
}

void xp_snapshot_destroy(xp_snapshot *snapshot) {
    if (!snapshot)
        return;
    xp_arena_destroy(snapshot->arena);
    free(snapshot->pieces);
    free(snapshot->given);
    free(snapshot->mirror);
    free(snapshot->bias_mirror);
    free(snapshot);
}

/* ---- to and from the device -------------------------------------------------------------- */

/* One chunk's masters and moments, [chunk.n] each from `host` on, between mirror and device. */
static xp_status copy_chunk(const xp_snapshot *s, const xp_shard_chunk *chunk, float *host,
                            bool to_host) {
    const int64_t n = chunk->n;
    float *const masters = host, *const m = host + s->mirror_elements,
                 *const v = host + 2 * s->mirror_elements;
    XP_TRY(to_host ? xp_staging_download(s->staging, m, chunk->m, n)
                   : xp_staging_upload(s->staging, chunk->m, m, n));
    if (chunk->remainder) {
        const xp_master_parts parts = {chunk->param, chunk->remainder, chunk->v};
        return to_host ? xp_staging_download_masters(s->staging, &parts, masters, v, n)
                       : xp_staging_upload_masters(s->staging, &parts, masters, v, n);
    }
    XP_TRY(to_host ? xp_staging_download(s->staging, masters, chunk->param, n)
                   : xp_staging_upload(s->staging, chunk->param, masters, n));
    return to_host ? xp_staging_download(s->staging, v, chunk->v, n)
                   : xp_staging_upload(s->staging, chunk->v, v, n);
}

static xp_status copy_mirror(xp_snapshot *s, bool to_host) {
    if (on_host(s->run))
        return xp_stream_sync(s->run->stream);
    if (s->bias_mirror && to_host)
        memcpy(s->bias_mirror, s->bias, bias_bytes(s));
    else if (s->bias_mirror)
        memcpy(s->bias, s->bias_mirror, bias_bytes(s));
    const xp_param_table *table = xp_model_params(s->run->model);
    int64_t at = 0;
    for (int g = 0; g < xp_param_table_n_groups(table); g++) {
        xp_shard_chunk chunk = xp_shard_get_chunk(s->run->shard, g);
        XP_TRY(copy_chunk(s, &chunk, s->mirror + at, to_host));
        at += chunk.n;
    }
    return xp_stream_sync(s->run->stream);
}

static int64_t select_pieces(xp_snapshot *s, int parts, bool chunks, bool bias) {
    int64_t n = 0;
    size_t one = sizeof *s->given;
    if (chunks && (parts & XP_SNAPSHOT_PARAMS)) {
        memcpy(s->given, s->pieces, (size_t)s->n_own * one);
        n = s->n_own;
    }
    if (chunks && (parts & XP_SNAPSHOT_MOMENTS)) {
        memcpy(s->given + n, s->pieces + s->n_own, (size_t)(2 * s->n_own) * one);
        n += 2 * s->n_own;
    }
    if (bias && (parts & XP_SNAPSHOT_BIAS)) {
        memcpy(s->given + n, s->pieces + 3 * s->n_own, (size_t)s->n_bias * one);
        n += s->n_bias;
    }
    return n;
}

xp_status xp_snapshot_collect(xp_snapshot *snapshot, int parts, const xp_ckpt_piece **pieces,
                              int64_t *n_pieces) {
    XP_TRY(copy_mirror(snapshot, true));
    *n_pieces = select_pieces(snapshot, parts, xp_shard_is_writer(snapshot->run->shard),
                              snapshot->run->mesh.rank == 0);
    *pieces = snapshot->given;
    return XP_OK;
}

/* "param/NAME", "exp_avg/NAME" and "exp_avg_sq/NAME" all belong to NAME. */
static bool is_of(const xp_ckpt_piece *piece, const char *name) {
    const char *slash = strchr(piece->name, '/');
    return slash && strcmp(slash + 1, name) == 0;
}

static bool has_slice(const xp_param_table *table, const char *name) {
    for (int p = 0; p < xp_param_table_n_params(table); p++) {
        for (int i = 0; i < xp_param_table_param(table, p)->n_slices; i++) {
            xp_param_slice slice;
            xp_param_table_slice(table, p, i, &slice);
            if (strcmp(slice.hf_name, name) == 0)
                return true;
        }
    }
    return false;
}

/* Against all experts' tensors, not only this rank's. */
static xp_status check_names(const xp_arch *arch, const xp_string_list *without) {
    xp_param_table *table = NULL;
    xp_status status = XP_OK;
    if (without->n > 0)
        XP_TRY(xp_param_table_create(arch, 0, 1, &table));
    for (int w = 0; w < without->n && status == XP_OK; w++) {
        if (!has_slice(table, without->items[w]))
            status = xp_error(XP_ECONFIG,
                              "checkpoint.exclude_from_loading: \"%s\" is no part of a checkpoint "
                              "(optimizer, lr_scheduler, dataloader, expert_bias, train_state) and "
                              "no tensor of the model",
                              without->items[w]);
    }
    xp_param_table_destroy(table);
    return status;
}

static int64_t leave_out(xp_snapshot *s, int64_t n, const xp_string_list *without) {
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        bool keep = true;
        for (int w = 0; w < without->n; w++)
            keep = keep && !is_of(&s->given[i], without->items[w]);
        if (keep)
            s->given[kept++] = s->given[i];
    }
    return kept;
}

/* A value that is no number may train on for many steps before its row is used: it is found here. So is a second
 * moment that no run writes: negative. */
static xp_status check_values(const xp_ckpt *ckpt, const xp_ckpt_piece *pieces, int64_t n_pieces) {
    for (int64_t p = 0; p < n_pieces; p++) {
        const float *values = pieces[p].data;
        const bool is_square = strncmp(pieces[p].name, "exp_avg_sq/", 11) == 0;
        for (int64_t i = 0; pieces[p].dtype == XP_F32 && i < pieces[p].n; i++) {
            if (!isfinite(values[i]))
                return xp_error(XP_EFORMAT, "%s: %s holds %s at element %lld: the run had diverged",
                                xp_ckpt_path(ckpt), pieces[p].name,
                                isnan(values[i]) ? "NaN" : "Inf", (long long)(pieces[p].first + i));
            if (is_square && values[i] < 0)
                return xp_error(XP_EFORMAT, "%s: %s holds %g at element %lld: it is no mean square",
                                xp_ckpt_path(ckpt), pieces[p].name, (double)values[i],
                                (long long)(pieces[p].first + i));
        }
    }
    return XP_OK;
}

xp_status xp_snapshot_restore(xp_snapshot *snapshot, const xp_ckpt *ckpt, int parts,
                              const xp_string_list *without) {
    /* What is not restored must survive the way back to the device. */
    XP_TRY(copy_mirror(snapshot, true));
    XP_TRY(check_names(&snapshot->run->arch, without));
    int64_t n = select_pieces(snapshot, parts, true, true);
    n = leave_out(snapshot, n, without);
    XP_TRY(xp_ckpt_read(ckpt, snapshot->given, n));
    XP_TRY(check_values(ckpt, snapshot->given, n));
    return copy_mirror(snapshot, false);
}
