/*
 * From routing to a plan's lists, in tiles with fixed borders: count by tile, prefix sum over tiles,
 * fill by tile. No atomics, so every index is the same whichever thread took which tile.
 */
#include <string.h>
#include "device/cpu/cpu_device.h"
#include "ep/common/cpu/kernels.h"

static void run_tiles(xp_stream *stream, xp_tile_fn fn, void *context, int64_t n_tiles) {
    xp_pool_run(xp_cpu_stream_pool(stream), fn, context, n_tiles);
}

static int64_t tiles_of(int64_t n, int64_t tile) {
    return (n + tile - 1) / tile;
}

/* The token's assignments as ascending (expert, k); returns how many. */
static int sorted_assignments(const int32_t *ids, int top_k, int32_t *expert, int32_t *slot) {
    int n = 0;
    for (int k = 0; k < top_k; k++) {
        if (ids[k] < 0)
            continue;
        int at = n++;
        for (; at > 0 && expert[at - 1] > ids[k]; at--) {
            expert[at] = expert[at - 1];
            slot[at] = slot[at - 1];
        }
        expert[at] = ids[k];
        slot[at] = k;
    }
    return n;
}

/* ---- route ---- */

typedef struct route_job {
    const xp_ep_route_args *args;
    int width; /* E + R + 3: counts, then the tile's first error */
} route_job;

static void record_error(int32_t *error, xp_ep_routing_error kind, int64_t token, int32_t value) {
    if (error[0] == XP_EP_ROUTING_OK) {
        error[0] = (int32_t)kind;
        error[1] = (int32_t)token;
        error[2] = value;
    }
}

static void route_tile(void *context, int64_t tile, int worker) {
    const route_job *job = context;
    const xp_ep_route_args *a = job->args;
    const xp_ep_shape *s = a->shape;
    (void)worker; /* writes only its tile's counts */
    int32_t *counts = a->tile_counts + tile * job->width;
    int32_t *rows = counts + s->n_experts, *error = rows + s->n_ranks;
    memset(counts, 0, (size_t)job->width * sizeof *counts);
    int64_t end =
        (tile + 1) * s->tile_tokens < a->n_tokens ? (tile + 1) * s->tile_tokens : a->n_tokens;
    for (int64_t t = tile * s->tile_tokens; t < end; t++) {
        const int32_t *ids = a->topk_idx + t * s->top_k;
        int32_t expert[XP_EP_MAX_TOP_K], slot[XP_EP_MAX_TOP_K];
        bool in_range = true;
        for (int k = 0; k < s->top_k; k++) {
            if (ids[k] < -1 || ids[k] >= s->n_experts) {
                record_error(error, XP_EP_ROUTING_RANGE, t, ids[k]);
                in_range = false;
            }
        }
        int n = in_range ? sorted_assignments(ids, s->top_k, expert, slot) : 0;
        int last_rank = -1;
        for (int i = 0; i < n; i++) {
            if (i > 0 && expert[i] == expert[i - 1])
                record_error(error, XP_EP_ROUTING_DUPLICATE, t, expert[i]);
            counts[expert[i]]++;
            int rank = expert[i] / s->n_local;
            rows[rank] += rank != last_rank;
            last_rank = rank;
        }
        if (s->local && n == 0)
            rows[0]++;
    }
}

void xp_ep_cpu_route(xp_stream *stream, const xp_ep_route_args *args) {
    const xp_ep_shape *s = args->shape;
    int width = s->n_experts + s->n_ranks + 3;
    memset(args->own_counts, 0, (size_t)s->counts_ints * sizeof *args->own_counts);
    int32_t *error = args->own_counts + XP_EP_COUNTS_ERROR(s);
    if (args->n_tokens > s->max_tokens || args->n_tokens < 0) {
        record_error(error, XP_EP_ROUTING_TOO_MANY, 0,
                     (int32_t)(args->n_tokens < INT32_MAX ? args->n_tokens : INT32_MAX));
        return;
    }
    if (args->n_tokens > 0 && !args->topk_idx) {
        record_error(error, XP_EP_ROUTING_NULL, 0, 0);
        return;
    }
    route_job job = {.args = args, .width = width};
    int64_t n_tiles = tiles_of(args->n_tokens, s->tile_tokens);
    run_tiles(stream, route_tile, &job, n_tiles);
    for (int64_t tile = 0; tile < n_tiles; tile++) {
        const int32_t *counts = args->tile_counts + tile * width;
        for (int i = 0; i < s->n_experts + s->n_ranks; i++)
            args->own_counts[i] += counts[i];
        const int32_t *found = counts + s->n_experts + s->n_ranks;
        if (found[0] != XP_EP_ROUTING_OK)
            record_error(error, (xp_ep_routing_error)found[0], found[1], found[2]);
    }
}

/* ---- send side ---- */

/*
 * Turn a tile's counts into its cursors: first row to each rank in [E .. E + R), first assignment to
 * each rank in [0 .. R), rows of earlier tiles over all ranks in [E + R]. Assignments are first added
 * up by rank, in the same memory: R <= E.
 */
static void make_cursors(const xp_ep_send_args *a, int64_t n_tiles, int width) {
    const xp_ep_shape *s = a->shape;
    int32_t all_rows = 0;
    for (int64_t tile = 0; tile < n_tiles; tile++) {
        int32_t *counts = a->tile_counts + tile * width;
        for (int r = 0; r < s->n_ranks; r++) {
            int32_t assignments = 0;
            for (int e = r * s->n_local; e < (r + 1) * s->n_local; e++)
                assignments += counts[e];
            counts[r] = assignments;
        }
    }
    for (int r = 0; r < s->n_ranks; r++) {
        int32_t row = a->row_base[r], assignment = a->assignment_base[r];
        for (int64_t tile = 0; tile < n_tiles; tile++) {
            int32_t *counts = a->tile_counts + tile * width;
            int32_t n_assignments = counts[r], n_rows = counts[s->n_experts + r];
            counts[r] = assignment;
            counts[s->n_experts + r] = row;
            assignment += n_assignments;
            row += n_rows;
            counts[s->n_experts + s->n_ranks] =
                r == 0 ? n_rows : counts[s->n_experts + s->n_ranks] + n_rows;
        }
    }
    for (int64_t tile = 0; tile < n_tiles; tile++) {
        int32_t *rows = a->tile_counts + tile * width + s->n_experts + s->n_ranks;
        int32_t n = *rows;
        *rows = all_rows;
        all_rows += n;
    }
}

typedef struct send_job {
    const xp_ep_send_args *args;
    int width;
} send_job;

static void start_row(const xp_ep_send_args *a, int32_t row, int64_t token, int32_t assignment,
                      int32_t *listed) {
    a->send_token[row] = (int32_t)token;
    a->send_assignment[row] = assignment;
    a->token_row[(*listed)++] = row;
}

static void send_tile(void *context, int64_t tile, int worker) {
    const send_job *job = context;
    const xp_ep_send_args *a = job->args;
    const xp_ep_shape *s = a->shape;
    (void)worker; /* each tile has its own cursors */
    int32_t *assignment_at = a->tile_counts + tile * job->width,
            *row_at = assignment_at + s->n_experts;
    int32_t listed = row_at[s->n_ranks];
    int64_t end =
        (tile + 1) * s->tile_tokens < a->n_tokens ? (tile + 1) * s->tile_tokens : a->n_tokens;
    for (int64_t t = tile * s->tile_tokens; t < end; t++) {
        int32_t expert[XP_EP_MAX_TOP_K], slot[XP_EP_MAX_TOP_K];
        int n = sorted_assignments(a->topk_idx + t * s->top_k, s->top_k, expert, slot);
        a->token_first[t] = listed;
        int last_rank = -1;
        if (s->local && n == 0)
            start_row(a, row_at[0]++, t, assignment_at[0], &listed);
        for (int i = 0; i < n; i++) {
            int rank = expert[i] / s->n_local;
            bool first = rank != last_rank;
            int32_t assignment = assignment_at[rank]++, entry = (int32_t)(t * s->top_k + slot[i]);
            if (first)
                start_row(a, row_at[rank]++, t, assignment, &listed);
            last_rank = rank;
            a->assignment_entry[assignment] = entry;
            a->assignments[rank][assignment - a->assignment_base[rank]] =
                (xp_ep_assignment){.expert = (uint32_t)(expert[i] - rank * s->n_local) |
                                             (first ? XP_EP_FIRST_ASSIGNMENT : 0),
                                   .weight = a->topk_weight ? a->topk_weight[entry] : 1.0F};
        }
    }
}

void xp_ep_cpu_build_send(xp_stream *stream, const xp_ep_send_args *args) {
    const xp_ep_shape *s = args->shape;
    send_job job = {.args = args, .width = s->n_experts + s->n_ranks + 3};
    int64_t n_tiles = tiles_of(args->n_tokens, s->tile_tokens);
    make_cursors(args, n_tiles, job.width);
    run_tiles(stream, send_tile, &job, n_tiles);
    args->token_first[args->n_tokens] = args->row_base[s->n_ranks];
    args->send_assignment[args->row_base[s->n_ranks]] = args->assignment_base[s->n_ranks];
}

/* ---- receive side ---- */

typedef struct recv_job {
    const xp_ep_recv_args *args;
    int64_t tile_assignments;
    int64_t round, first_row, end_row;
    int32_t first_assignment;
} recv_job;

static int64_t assignment_end(const recv_job *job, int64_t tile) {
    int64_t end = (tile + 1) * job->tile_assignments;
    return end < job->args->n_assignments ? end : job->args->n_assignments;
}

static void count_rows_tile(void *context, int64_t tile, int worker) {
    const recv_job *job = context;
    (void)worker; /* one count a tile */
    int32_t n = 0;
    for (int64_t i = tile * job->tile_assignments; i < assignment_end(job, tile); i++)
        n += (job->args->assignments[i].expert & XP_EP_FIRST_ASSIGNMENT) != 0;
    job->args->tile_counts[tile] = n;
}

static void find_rows_tile(void *context, int64_t tile, int worker) {
    const recv_job *job = context;
    (void)worker; /* writes its rows only */
    int32_t row = job->args->tile_counts[tile];
    for (int64_t i = tile * job->tile_assignments; i < assignment_end(job, tile); i++) {
        if ((job->args->assignments[i].expert & XP_EP_FIRST_ASSIGNMENT) != 0)
            job->args->recv_assignment[row++] = (int32_t)i;
    }
}

static void prefix(int32_t *counts, int64_t n, int64_t stride, int32_t start) {
    for (int64_t i = 0; i < n; i++) {
        int32_t count = counts[i * stride];
        counts[i * stride] = start;
        start += count;
    }
}

/* First row whose first assignment is not below `assignment`. */
static int32_t row_at_assignment(const xp_ep_recv_args *a, int64_t assignment) {
    int64_t low = 0, high = a->n_rows;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (a->recv_assignment[middle] < assignment)
            low = middle + 1;
        else
            high = middle;
    }
    return (int32_t)low;
}

static int64_t row_end(const recv_job *job, int64_t tile) {
    int64_t end = job->first_row + (tile + 1) * job->args->shape->tile_tokens;
    return end < job->end_row ? end : job->end_row;
}

static void count_experts_tile(void *context, int64_t tile, int worker) {
    const recv_job *job = context;
    const xp_ep_recv_args *a = job->args;
    int n_local = a->shape->n_local;
    (void)worker; /* one histogram a tile */
    int32_t *counts = a->tile_counts + tile * n_local;
    memset(counts, 0, (size_t)n_local * sizeof *counts);
    int64_t first = job->first_row + tile * a->shape->tile_tokens;
    for (int64_t i = a->recv_assignment[first]; i < a->recv_assignment[row_end(job, tile)]; i++)
        counts[a->assignments[i].expert & ~XP_EP_FIRST_ASSIGNMENT]++;
}

static void scatter_tile(void *context, int64_t tile, int worker) {
    const recv_job *job = context;
    const xp_ep_recv_args *a = job->args;
    (void)worker; /* each tile has its own cursors */
    int32_t *cursor = a->tile_counts + tile * a->shape->n_local;
    int32_t *gather = a->gather + job->round * a->shape->assignment_capacity;
    float *weight = a->weight + job->round * a->shape->assignment_capacity;
    int32_t *own_token = a->own_token + job->round * a->shape->assignment_capacity;
    for (int64_t row = job->first_row + tile * a->shape->tile_tokens; row < row_end(job, tile);
         row++) {
        const int64_t own = row - a->first_own;
        const bool is_own = own >= 0 && own < a->n_own;
        for (int64_t i = a->recv_assignment[row]; i < a->recv_assignment[row + 1]; i++) {
            int32_t at = cursor[a->assignments[i].expert & ~XP_EP_FIRST_ASSIGNMENT]++;
            a->assignment_pos[i] = at;
            gather[at] = (int32_t)(row - job->first_row);
            weight[at] = a->assignments[i].weight;
            if (is_own)
                own_token[at] = a->token[own];
        }
    }
}

static void build_round(xp_stream *stream, recv_job *job) {
    const xp_ep_recv_args *a = job->args;
    int n_local = a->shape->n_local;
    int32_t *offsets = a->offsets + job->round * (n_local + 1);
    int64_t n_tiles = tiles_of(job->end_row - job->first_row, a->shape->tile_tokens);
    a->n_recv[job->round] = (int32_t)(job->end_row - job->first_row);
    run_tiles(stream, count_experts_tile, job, n_tiles);
    offsets[0] = 0;
    for (int e = 0; e < n_local; e++) {
        int32_t n = 0;
        for (int64_t tile = 0; tile < n_tiles; tile++)
            n += a->tile_counts[tile * n_local + e];
        prefix(a->tile_counts + e, n_tiles, n_local, offsets[e]);
        offsets[e + 1] = offsets[e] + n;
    }
    run_tiles(stream, scatter_tile, job, n_tiles);
}

void xp_ep_cpu_build_recv(xp_stream *stream, const xp_ep_recv_args *args) {
    const xp_ep_shape *s = args->shape;
    recv_job job = {.args = args, .tile_assignments = s->tile_tokens * s->row_assignments};
    if (!args->rows_known) {
        int64_t n_tiles = tiles_of(args->n_assignments, job.tile_assignments);
        run_tiles(stream, count_rows_tile, &job, n_tiles);
        prefix(args->tile_counts, n_tiles, 1, 0);
        run_tiles(stream, find_rows_tile, &job, n_tiles);
        args->recv_assignment[args->n_rows] = (int32_t)args->n_assignments;
    }
    for (int64_t round = 0; round < args->n_rounds; round++)
        args->round_row[round] =
            round == 0
                ? 0
                : row_at_assignment(args, xp_ep_shape_round_start(s, args->n_assignments, round));
    args->round_row[args->n_rounds] = (int32_t)args->n_rows;
    for (int64_t round = 0; round < args->n_rounds; round++) {
        job.round = round;
        job.first_row = args->round_row[round];
        job.end_row = args->round_row[round + 1];
        build_round(stream, &job);
    }
}
