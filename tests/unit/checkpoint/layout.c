#include "layout.h"

#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/rng.h"

#define MAX_RANKS 16

static const xp_ckpt_piece tensors[] = {
    {.name = "param/model.embed_tokens.weight", .dtype = XP_F32, .n_dims = 2, .shape = {37, 16}},
    {.name = "param/model.layers.0.mlp.experts.0.gate_proj.weight",
     .dtype = XP_F32,
     .n_dims = 2,
     .shape = {8, 16}},
    {.name = "param/model.layers.0.mlp.experts.1.gate_proj.weight",
     .dtype = XP_F32,
     .n_dims = 2,
     .shape = {8, 16}},
    {.name = "param/model.norm.weight", .dtype = XP_F32, .n_dims = 1, .shape = {16}},
    {.name = "exp_avg/model.embed_tokens.weight", .dtype = XP_F32, .n_dims = 2, .shape = {37, 16}},
    {.name = "exp_avg_sq/model.norm.weight", .dtype = XP_F32, .n_dims = 1, .shape = {16}},
    {.name = "expert_bias/0", .dtype = XP_F32, .n_dims = 1, .shape = {32}},
    {.name = "counters", .dtype = XP_I64, .n_dims = 1, .shape = {5}},
    {.name = "cube", .dtype = XP_F32, .n_dims = 3, .shape = {3, 5, 7}},
    {.name = "scalar", .dtype = XP_F32, .n_dims = 0},
    {.name = "empty", .dtype = XP_F32, .n_dims = 2, .shape = {0, 9}},
};
#define N_TENSORS ((int64_t)(sizeof tensors / sizeof tensors[0]))

int64_t xp_layout_tensors(xp_ckpt_piece *pieces) {
    memcpy(pieces, tensors, sizeof tensors);
    return N_TENSORS;
}

static int64_t count(const xp_ckpt_piece *piece) {
    int64_t n = 1;
    for (int d = 0; d < piece->n_dims; d++)
        n *= piece->shape[d];
    return n;
}

static void add_piece(xp_layout *layout, const xp_ckpt_piece *tensor, int64_t first, int64_t n) {
    assert_in_range(layout->n_pieces, 0, XP_LAYOUT_MAX_PIECES - 1);
    xp_ckpt_piece *piece = &layout->pieces[layout->n_pieces++];
    *piece = *tensor;
    piece->first = first;
    piece->n = n;
    piece->data = calloc((size_t)n + 1, xp_dtype_bytes(tensor->dtype));
    assert_non_null(piece->data);
}

void xp_layout_cut(uint64_t seed, int n_ranks, xp_layout *layouts) {
    uint64_t draw = 0;
    for (int r = 0; r < n_ranks; r++)
        layouts[r].n_pieces = 0;
    for (int64_t t = 0; t < N_TENSORS; t++) {
        int64_t total = count(&tensors[t]), first = 0;
        if (total == 0)
            add_piece(&layouts[xp_rng_below(seed, 1, draw++, (uint64_t)n_ranks)], &tensors[t], 0,
                      0);
        while (first < total) {
            int64_t left = total - first, n = left;
            if (xp_rng_below(seed, 1, draw++, 3) > 0) /* now and then the rest as a whole */
                n = 1 + (int64_t)xp_rng_below(seed, 1, draw++, (uint64_t)left);
            int rank = (int)xp_rng_below(seed, 1, draw++, (uint64_t)n_ranks);
            add_piece(&layouts[rank], &tensors[t], first, n);
            first += n;
        }
    }
}

static int64_t value_of(const xp_ckpt_piece *piece, int64_t element, int version) {
    return (int64_t)(xp_rng_stream(piece->name) % 1000) * 1000 + element * 7 + version;
}

void xp_layout_fill(xp_layout *layout, int version) {
    for (int64_t p = 0; p < layout->n_pieces; p++) {
        xp_ckpt_piece *piece = &layout->pieces[p];
        for (int64_t i = 0; i < piece->n; i++) {
            int64_t value = value_of(piece, piece->first + i, version);
            if (piece->dtype == XP_I64)
                ((int64_t *)piece->data)[i] = value;
            else
                ((float *)piece->data)[i] = (float)value;
        }
    }
}

bool xp_layout_is(const xp_layout *layout, int version) {
    for (int64_t p = 0; p < layout->n_pieces; p++) {
        const xp_ckpt_piece *piece = &layout->pieces[p];
        for (int64_t i = 0; i < piece->n; i++) {
            int64_t value = value_of(piece, piece->first + i, version);
            bool same = piece->dtype == XP_I64 ? ((int64_t *)piece->data)[i] == value
                                               : ((float *)piece->data)[i] == (float)value;
            if (!same)
                return false;
        }
    }
    return true;
}

void xp_layout_free(xp_layout *layouts, int n_ranks) {
    for (int r = 0; r < n_ranks; r++) {
        for (int64_t p = 0; p < layouts[r].n_pieces; p++)
            free(layouts[r].pieces[p].data);
        layouts[r].n_pieces = 0;
    }
}

typedef struct rank_thread {
    pthread_t thread;
    xp_thread_world *world;
    xp_rank_body body;
    void *context;
    int rank;
} rank_thread;

static void *run_rank(void *argument) {
    rank_thread *self = argument;
    xp_comm *comm;
    if (xp_thread_world_comm(self->world, self->rank, &comm) != XP_OK) {
        print_error("%s\n", xp_last_error());
        return NULL;
    }
    self->body(self->context, comm, self->rank);
    xp_comm_destroy(comm);
    return NULL;
}

void xp_layout_run_ranks(int n_ranks, xp_rank_body body, void *context) {
    rank_thread threads[MAX_RANKS];
    xp_thread_world *world;
    assert_in_range(n_ranks, 1, MAX_RANKS);
    assert_int_equal(xp_thread_world_create(n_ranks, 60, &world), XP_OK);
    for (int r = 0; r < n_ranks; r++) {
        threads[r] = (rank_thread){.world = world, .body = body, .context = context, .rank = r};
        assert_int_equal(pthread_create(&threads[r].thread, NULL, run_rank, &threads[r]), 0);
    }
    for (int r = 0; r < n_ranks; r++)
        pthread_join(threads[r].thread, NULL);
    xp_thread_world_destroy(world);
}

typedef struct save_context {
    xp_ckpt_save_args args;
    xp_layout *layouts;
    xp_status statuses[MAX_RANKS];
    char error[1024];
} save_context;

static const xp_ckpt_value values[] = {{"tokens_seen", "12345"},
                                       {"config", "[job]\nx = \"\\\"\"\n"}};

static void save_rank(void *context, xp_comm *comm, int rank) {
    save_context *c = context;
    xp_ckpt_save_args args = c->args;
    args.comm = comm;
    args.pieces = c->layouts[rank].pieces;
    args.n_pieces = c->layouts[rank].n_pieces;
    c->statuses[rank] = xp_ckpt_save(&args);
    if (rank == 0 && c->statuses[0] != XP_OK)
        snprintf(c->error, sizeof c->error, "%s", xp_last_error());
}

xp_status xp_layout_save(const char *folder, int64_t step, int64_t keep, xp_layout *layouts,
                         int n_ranks) {
    save_context context = {.args = {.folder = folder,
                                     .step = step,
                                     .values = values,
                                     .n_values = 2,
                                     .keep_latest_k = keep},
                            .layouts = layouts};
    if (n_ranks == 1)
        save_rank(&context, NULL, 0);
    else
        xp_layout_run_ranks(n_ranks, save_rank, &context);
    for (int r = 1; r < n_ranks; r++) /* one outcome on all ranks */
        assert_int_equal(context.statuses[r] == XP_OK, context.statuses[0] == XP_OK);
    if (context.statuses[0] != XP_OK)
        return xp_error(context.statuses[0], "%s", context.error);
    return XP_OK;
}

xp_status xp_layout_load(const char *folder, int64_t step, xp_layout *layouts, int n_ranks) {
    for (int r = 0; r < n_ranks; r++) {
        xp_ckpt *ckpt;
        XP_TRY(xp_ckpt_open(folder, step, &ckpt));
        xp_status status = xp_ckpt_read(ckpt, layouts[r].pieces, layouts[r].n_pieces);
        xp_ckpt_close(ckpt);
        XP_TRY(status);
    }
    return XP_OK;
}
