#include "ep/common/shape.h"

#include "ep/common/assignment.h"
#include "ep/internal.h"

/* Any number of rows that fits 32 bits, each of so many values, has bytes that fit 64 bits. */
#define MAX_DIM (1 << 24)

static int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t max_i64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static xp_status check(const xp_ep_config *c, int n_ranks) {
    if (n_ranks < 1)
        return xp_error(XP_EINVAL, "expert parallelism over %d ranks: at least one is needed",
                        n_ranks);
    if (c->max_tokens < 1 || c->dim < 1)
        return xp_error(XP_EINVAL, "xp_ep_config: max_tokens %lld and dim %lld must be positive",
                        (long long)c->max_tokens, (long long)c->dim);
    if (c->dim > MAX_DIM)
        return xp_error(XP_EINVAL, "xp_ep_config: dim %lld must be at most %d", (long long)c->dim,
                        MAX_DIM);
    if (c->n_experts < 1 || c->n_experts % n_ranks != 0)
        return xp_error(XP_EINVAL,
                        "xp_ep_config: %d experts cannot be shared equally by %d ranks; choose an "
                        "expert parallel "
                        "degree that divides the number of experts",
                        c->n_experts, n_ranks);
    if (c->top_k < 1 || c->top_k > c->n_experts || c->top_k > XP_EP_MAX_TOP_K)
        return xp_error(XP_EINVAL, "xp_ep_config: top_k %d must be from 1 to %d", c->top_k,
                        c->n_experts < XP_EP_MAX_TOP_K ? c->n_experts : XP_EP_MAX_TOP_K);
    if (c->dtype != XP_F32 && c->dtype != XP_BF16)
        return xp_error(XP_EINVAL, "xp_ep_config: rows of type %s; there are f32 and bf16",
                        xp_dtype_name(c->dtype));
    if (!(c->capacity_factor > 0) || c->capacity_factor > 1e9)
        return xp_error(XP_EINVAL,
                        "xp_ep_config: capacity_factor %g must be above 0 and at most 1e9",
                        c->capacity_factor);
    if ((unsigned)c->transport > XP_EP_HIERARCHICAL)
        return xp_error(XP_EINVAL, "xp_ep_config: %d is not a transport", (int)c->transport);
    if (c->n_slots < 0 || c->n_slots > 16 || !(c->timeout_s >= 0))
        return xp_error(XP_EINVAL,
                        "xp_ep_config: n_slots %d must be 0 to 16 and timeout_s %g not negative",
                        c->n_slots, c->timeout_s);
    if (c->num_sms < 0)
        return xp_error(XP_EINVAL, "xp_ep_config: num_sms %d must not be negative", c->num_sms);
    if (c->send_copies < 0 || c->send_copies > 64)
        return xp_error(XP_EINVAL, "xp_ep_config: send_copies %d must be 0 to 64", c->send_copies);
    return XP_OK;
}

xp_status xp_ep_shape_make(const xp_ep_config *c, int n_ranks, xp_ep_shape *shape) {
    XP_TRY(check(c, n_ranks));
    int n_local = c->n_experts / n_ranks;
    xp_ep_shape s = {.n_ranks = n_ranks,
                     .n_experts = c->n_experts,
                     .n_local = n_local,
                     .top_k = c->top_k,
                     .row_assignments = c->top_k < n_local ? c->top_k : n_local,
                     .n_slots = c->n_slots ? c->n_slots : 1,
                     .send_copies = c->send_copies ? c->send_copies : 1,
                     .max_tokens = c->max_tokens,
                     .dim = c->dim,
                     .dtype = c->dtype,
                     .on_gpu = c->on_gpu};
    s.row_bytes = (size_t)c->dim * xp_dtype_bytes(c->dtype);
    if (c->max_tokens > INT32_MAX / n_ranks / s.row_assignments / 2 ||
        c->max_tokens > INT32_MAX / c->top_k)
        return xp_error(
            XP_EINVAL,
            "xp_ep_config: %lld tokens x %d assignments x %d ranks do not fit 32-bit row "
            "numbers; use smaller "
            "microbatches",
            (long long)c->max_tokens, c->top_k, n_ranks);
    s.max_send_assignments = c->max_tokens * c->top_k;
    s.max_recv_rows = n_ranks * c->max_tokens;
    s.max_recv_assignments = s.max_recv_rows * s.row_assignments;
    /* At least one row fits, and the number of rounds stays bounded whatever the factor. */
    double wanted = c->capacity_factor * (double)s.max_send_assignments;
    int64_t capacity =
        wanted >= (double)s.max_recv_assignments ? s.max_recv_assignments : (int64_t)wanted;
    capacity += (double)capacity < wanted && capacity < s.max_recv_assignments;
    int64_t least = (s.max_recv_assignments + XP_EP_MAX_ROUNDS - 1) / XP_EP_MAX_ROUNDS;
    /* A row may straddle a round's end: with room for the rest of it, each round takes as many
     * assignments as the factor says, and the worst case needs no further round for a few rows. */
    s.assignment_capacity =
        min_i64(max_i64(capacity, least) + s.row_assignments - 1, s.max_recv_assignments);
    s.recv_capacity = min_i64(s.max_recv_rows, s.assignment_capacity);
    s.round_assignments = s.assignment_capacity - (s.row_assignments - 1);
    s.max_rounds = xp_ep_shape_rounds(&s, s.max_recv_assignments);
    s.local = n_ranks == 1 && s.max_rounds == 1;
    s.max_send_rows = c->max_tokens * (c->top_k < n_ranks ? c->top_k : n_ranks);
    s.counts_ints = c->n_experts + n_ranks + 4;
    s.tile_tokens = max_i64(256, (c->max_tokens + 63) / 64);
    s.n_tiles = (max_i64(s.max_recv_rows, c->max_tokens) + s.tile_tokens - 1) / s.tile_tokens;
    if (s.send_copies > 1 && s.assignment_capacity < c->max_tokens)
        return xp_error(XP_EINVAL,
                        "xp_ep_config: send_copies %d needs room for max_tokens rows in a round: a "
                        "capacity_factor of at least %g",
                        s.send_copies, 1.0 / c->top_k);
    if (s.max_rounds * s.assignment_capacity > INT32_MAX)
        return xp_error(
            XP_EINVAL,
            "xp_ep_config: %lld rounds of %lld assignment rows do not fit 32-bit row numbers; use "
            "smaller microbatches",
            (long long)s.max_rounds, (long long)s.assignment_capacity);
    const size_t longest = xp_ep_metadata_counts_bytes(&s) +
                           (size_t)(s.max_tokens * s.row_assignments) * sizeof(xp_ep_assignment);
    s.metadata_bytes =
        !c->on_gpu && longest * (size_t)n_ranks <= XP_EP_ONE_EXCHANGE_BYTES ? longest : 0;
    *shape = s;
    return XP_OK;
}

size_t xp_ep_metadata_counts_bytes(const xp_ep_shape *shape) {
    return ((size_t)shape->counts_ints * sizeof(int32_t) + 15) / 16 * 16;
}

int64_t xp_ep_shape_rounds(const xp_ep_shape *shape, int64_t n_assignments) {
    return n_assignments <= shape->assignment_capacity
               ? 1
               : (n_assignments + shape->round_assignments - 1) / shape->round_assignments;
}

int64_t xp_ep_shape_round_start(const xp_ep_shape *shape, int64_t n_assignments, int64_t round) {
    if (round == 0)
        return 0;
    return n_assignments <= shape->assignment_capacity
               ? n_assignments
               : min_i64(round * shape->round_assignments, n_assignments);
}

void *xp_ep_carve(xp_ep_carver *carver, size_t n_bytes) {
    void *at = carver->base ? carver->base + carver->used : NULL;
    carver->used += (n_bytes + 255) / 256 * 256;
    return at;
}

int32_t *xp_ep_carve_ints(xp_ep_carver *carver, int64_t n) {
    return xp_ep_carve(carver, (size_t)n * sizeof(int32_t));
}

size_t xp_ep_assignment_bytes(const xp_ep_shape *shape) {
    return shape->on_gpu ? sizeof(xp_ep_gpu_assignment) : sizeof(xp_ep_assignment);
}

int64_t xp_ep_tile_ints(const xp_ep_shape *s) {
    return s->n_experts + s->n_ranks + 3 + (s->on_gpu ? s->n_ranks : 0);
}

size_t xp_ep_scratch_bytes(const xp_ep_shape *s) {
    int64_t ints = s->n_tiles * xp_ep_tile_ints(s) + s->counts_ints;
    if (s->on_gpu)
        ints += XP_EP_GPU_SCRATCH_WORDS;
    if (s->on_gpu && s->max_rounds > 1)
        ints += (s->n_tiles + s->max_rounds) * s->n_local;
    return ((size_t)ints * sizeof(int32_t) + 255) / 256 * 256;
}

xp_status xp_ep_shape_check_gpu(const xp_ep_shape *shape) {
    if (shape->top_k > XP_EP_GPU_MAX_TOP_K)
        return xp_error(XP_ENOTSUP, "expert parallelism on GPUs: top_k is %d, at most %d work",
                        shape->top_k, XP_EP_GPU_MAX_TOP_K);
    if (shape->n_ranks > XP_EP_GPU_MAX_RANKS)
        return xp_error(XP_ENOTSUP,
                        "expert parallelism over %d ranks on GPUs: at most %d work; choose a "
                        "smaller expert parallel degree",
                        shape->n_ranks, XP_EP_GPU_MAX_RANKS);
    return XP_OK;
}
