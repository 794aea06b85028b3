/* The reference shares no code with the library: it knows the routing of every rank and follows the
 * documented rules. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "harness.h"

static uint64_t mix(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    uint64_t h = a * 0x9e3779b97f4a7c15U ^ (b + 0x7f4a7c15U) * 0xbf58476d1ce4e5b9U;
    h ^= (c + 0x1ce4e5b9U) * 0x94d049bb133111ebU;
    h ^= (d + 0x33111ebU) * 0xd6e8feb86659fd93U;
    h ^= h >> 31;
    h *= 0x94d049bb133111ebU;
    return h ^ h >> 29;
}

static void draw_distinct(const ep_problem *p, int rank, int64_t token, bool skewed, int first,
                          int n, int32_t *ids) {
    int found = 0;
    for (uint64_t i = 0; found < p->top_k && found < n; i++) {
        uint64_t h = mix(p->seed, (uint64_t)rank, (uint64_t)token, i);
        int e = (int)(h % (uint64_t)n);
        if (skewed && i < 64)
            e = e * e / n;
        bool seen = false;
        for (int k = 0; k < found; k++)
            seen |= ids[k] == first + e;
        if (!seen)
            ids[found++] = first + e;
    }
    for (; found < p->top_k; found++)
        ids[found] = -1;
}

void ref_route(const ep_problem *p, int rank, int64_t token, int32_t *ids) {
    int n_local = p->n_experts / p->n_ranks;
    for (int k = 0; k < p->top_k; k++)
        ids[k] = -1;
    switch (p->routing) {
    case ROUTE_NONE:
        return;
    case ROUTE_ONE_EXPERT:
        ids[p->top_k / 2] = p->n_experts - 1;
        return;
    case ROUTE_ONE_RANK:
        draw_distinct(p, rank, token, false, p->n_experts - n_local, n_local, ids);
        return;
    case ROUTE_MODULO:
        for (int k = 0; k < p->top_k; k++)
            ids[k] = (int32_t)((token * p->top_k + k) % p->n_experts);
        return;
    default:
        draw_distinct(p, rank, token, p->routing == ROUTE_SKEWED, 0, p->n_experts, ids);
    }
    for (int k = 0; k < p->top_k && p->routing == ROUTE_HOLES; k++) {
        if (mix(p->seed + 1, (uint64_t)rank, (uint64_t)token, (uint64_t)k) % 4 == 0)
            ids[k] = -1;
    }
}

static float unit(uint64_t h) {
    return (float)(h >> 40) / 8388608.0F - 1.0F;
}

float ref_round(xp_dtype dtype, float value) {
    if (dtype == XP_F32)
        return value;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t low = bits & 0xffffU, high = bits >> 16;
    if (low > 0x8000U || (low == 0x8000U && (high & 1U)))
        high++;
    bits = high << 16;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

float ref_load(xp_dtype dtype, const void *data, int64_t i) {
    if (dtype == XP_F32)
        return ((const float *)data)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void ref_store(xp_dtype dtype, void *data, int64_t i, float value) {
    if (dtype == XP_F32) {
        ((float *)data)[i] = value;
        return;
    }
    uint32_t bits;
    value = ref_round(dtype, value);
    memcpy(&bits, &value, sizeof bits);
    ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
}

float ref_weight(const ep_problem *p, int rank, int64_t token, int expert) {
    return unit(mix(p->seed + 2, (uint64_t)rank, (uint64_t)token, (uint64_t)expert));
}

float ref_x(const ep_problem *p, int rank, int64_t token, int64_t column) {
    float value = column == 0 ? (float)rank
                  : column == 1
                      ? sinf((float)token)
                      : unit(mix(p->seed + 3, (uint64_t)rank, (uint64_t)token, (uint64_t)column));
    return ref_round(p->dtype, value);
}

float ref_expert(const ep_problem *p, int expert, float x, float weight) {
    float scaled = x * (1.0F + 0.37F * (float)expert);
    float weighted = scaled * weight;
    return ref_round(p->dtype, weighted);
}

float ref_d_weight(int source, int64_t token, int expert) {
    return unit(mix(77, (uint64_t)source, (uint64_t)token, (uint64_t)expert));
}

/* The token's experts on one rank, ascending; how many. */
static int assignments_on(const ep_problem *p, int source, int64_t token, int rank, int *experts) {
    int32_t ids[64];
    int n_local = p->n_experts / p->n_ranks, n = 0;
    ref_route(p, source, token, ids);
    for (int e = rank * n_local; e < (rank + 1) * n_local; e++) {
        for (int k = 0; k < p->top_k; k++) {
            if (ids[k] == e)
                experts[n++] = e;
        }
    }
    return n;
}

static int64_t min_assignments(const ep_problem *p) {
    int n_local = p->n_experts / p->n_ranks;
    return p->top_k < n_local ? p->top_k : n_local;
}

ref_layout ref_receive(const ep_problem *p, int rank, int64_t assignment_capacity) {
    ref_layout layout = {.n_rounds = 1};
    int64_t room = 0;
    for (int s = 0; s < p->n_ranks; s++)
        room += p->tokens[s];
    layout.rows = calloc((size_t)room + 1, sizeof *layout.rows);
    if (!layout.rows)
        abort();
    int64_t most = p->n_ranks * p->max_tokens * min_assignments(p);
    bool local = p->n_ranks == 1 && most <= assignment_capacity; /* every token has its row */
    for (int s = 0; s < p->n_ranks; s++) {
        for (int64_t t = 0; t < p->tokens[s]; t++) {
            ref_row *row = &layout.rows[layout.n_rows];
            row->n_assignments = assignments_on(p, s, t, rank, row->experts);
            if (row->n_assignments == 0 && !local)
                continue;
            row->source = s;
            row->token = t;
            row->first_assignment = layout.n_assignments;
            layout.n_assignments += row->n_assignments;
            layout.n_rows++;
        }
    }
    /* The round rule of docs/explanation/expert-parallelism.md. */
    if (layout.n_assignments > assignment_capacity) {
        int64_t step = assignment_capacity - (min_assignments(p) - 1);
        for (int64_t i = 0; i < layout.n_rows; i++)
            layout.rows[i].round = layout.rows[i].first_assignment / step;
        layout.n_rounds = (layout.n_assignments + step - 1) / step;
    }
    return layout;
}

/* Which round a token's row for a rank is in. */
static int64_t round_of(const ref_layout *layout, int source, int64_t token) {
    for (int64_t i = 0; i < layout->n_rows; i++) {
        if (layout->rows[i].source == source && layout->rows[i].token == token)
            return layout->rows[i].round;
    }
    return -1;
}

static float partial(const ep_problem *p, int source, int64_t token, const int *experts, int n,
                     float x) {
    float sum = 0;
    for (int i = 0; i < n; i++) {
        float value = ref_expert(p, experts[i], x, ref_weight(p, source, token, experts[i]));
        sum = i == 0 ? value : sum + value;
    }
    return ref_round(p->dtype, sum);
}

void ref_combine(const ep_problem *p, int rank, int64_t assignment_capacity, const int *nodes,
                 int64_t token, float *out) {
    int experts[64][64], n[64];
    int64_t rounds[64] = {0}, n_rounds = 1;
    for (int r = 0; r < p->n_ranks; r++) {
        n[r] = assignments_on(p, rank, token, r, experts[r]);
        if (nodes) {
            ref_layout layout = ref_receive(p, r, assignment_capacity);
            rounds[r] = round_of(&layout, rank, token);
            n_rounds = layout.n_rounds > n_rounds ? layout.n_rounds : n_rounds;
            free(layout.rows);
        }
    }
    for (int64_t c = 0; c < p->dim; c++) {
        float x = ref_x(p, rank, token, c), total = 0;
        bool any = false;
        for (int r = 0; r < p->n_ranks && !nodes; r++) {
            if (n[r] == 0)
                continue;
            float value = partial(p, rank, token, experts[r], n[r], x);
            total = any ? total + value : value;
            any = true;
        }
        /* A node's ranks that answer in the same round are added there and rounded: one more level.
         */
        for (int node = 0; nodes && node < p->n_ranks; node++) {
            for (int64_t round = 0; round < n_rounds; round++) {
                float sum = 0;
                bool some = false;
                for (int r = 0; r < p->n_ranks; r++) {
                    if (n[r] == 0 || nodes[r] != node || rounds[r] != round)
                        continue;
                    float value = partial(p, rank, token, experts[r], n[r], x);
                    sum = some ? sum + value : value;
                    some = true;
                }
                if (!some)
                    continue;
                sum = ref_round(p->dtype, sum);
                total = any ? total + sum : sum;
                any = true;
            }
        }
        out[c] = ref_round(p->dtype, total);
    }
}
