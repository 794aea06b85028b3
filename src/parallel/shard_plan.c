#include "parallel/shard_plan.h"

#include <stdlib.h>
#include <string.h>

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

static int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void cut_group(const xp_param_group *group, int n_ranks, int rank, xp_shard_group *out) {
    int64_t n = group->n_elements;
    int64_t chunk = n_ranks == 1 ? n : round_up((n + n_ranks - 1) / n_ranks, XP_GROUP_ALIGN);
    int64_t begin = min_i64(chunk * rank, n);
    int64_t end = min_i64(begin + chunk, n);
    out->chunk_elements = chunk;
    out->first = group->offset + begin;
    out->n = end - begin;
    out->n_ranks = n_ranks;
    out->rank = rank;
}

/* Appends pieces to the bucket that is open for this kind of group, opening and closing buckets. */
typedef struct packer {
    xp_shard_plan *plan;
    int capacity_pieces, capacity_buckets;
    int64_t bucket_elements;
    int open; /* bucket, -1 = none */
} packer;

static void add_piece(packer *p, int group, int64_t first, int64_t n) {
    xp_shard_plan *plan = p->plan;
    xp_shard_bucket *bucket = &plan->buckets[p->open];
    plan->pieces[plan->n_pieces] =
        (xp_shard_piece){.group = group, .first = first, .n = n, .stage_offset = bucket->n_each};
    plan->n_pieces++;
    bucket->n_pieces++;
    bucket->n_each += n;
    bucket->n_groups++; /* a bucket holds one piece of a group at most */
}

static void open_bucket(packer *p, bool is_expert, bool direct, int n_ranks) {
    p->open = p->plan->n_buckets++;
    p->plan->buckets[p->open] = (xp_shard_bucket){
        .is_expert = is_expert,
        .direct = direct,
        .first_piece = p->plan->n_pieces,
        .n_ranks = n_ranks,
    };
}

static void pack_group(packer *p, int index, const xp_param_group *group) {
    const xp_shard_group *cut = &p->plan->groups[index];
    bool direct = cut->n_ranks == 1 || cut->chunk_elements * cut->n_ranks == group->n_elements;
    /* A big group in place costs no copy; small ones are worth packing. */
    if (direct && (cut->n_ranks == 1 || 2 * group->n_elements > p->bucket_elements)) {
        open_bucket(p, group->is_expert, true, cut->n_ranks);
        add_piece(p, index, 0, cut->chunk_elements);
        p->open = -1;
        return;
    }
    int64_t limit = p->bucket_elements / cut->n_ranks;
    limit = limit < XP_GROUP_ALIGN ? XP_GROUP_ALIGN : limit / XP_GROUP_ALIGN * XP_GROUP_ALIGN;
    int64_t done = 0;
    while (done < cut->chunk_elements) {
        int64_t room = p->open < 0 ? 0 : limit - p->plan->buckets[p->open].n_each;
        /* A group that fits into an empty bucket is not split. */
        bool tear = cut->chunk_elements > limit;
        if (room <= 0 || (!tear && room < cut->chunk_elements)) {
            open_bucket(p, group->is_expert, false, cut->n_ranks);
            room = limit;
        }
        int64_t n = min_i64(room, cut->chunk_elements - done);
        add_piece(p, index, done, n);
        done += n;
    }
}

/* Groups per bucket limit the number of pieces: a group gives at most its chunk over limit + 2. */
static int64_t pieces_bound(const xp_shard_plan *plan, int64_t bucket_elements) {
    int64_t bound = 0;
    for (int g = 0; g < plan->n_groups; g++) {
        int64_t limit = bucket_elements / plan->groups[g].n_ranks / XP_GROUP_ALIGN * XP_GROUP_ALIGN;
        limit = limit < XP_GROUP_ALIGN ? XP_GROUP_ALIGN : limit;
        bound += plan->groups[g].chunk_elements / limit + 2;
    }
    return bound;
}

static void pack_kind(packer *p, const xp_param_table *table, bool is_expert) {
    p->open = -1;
    for (int g = p->plan->n_groups - 1; g >= 0; g--) {
        const xp_param_group *group = xp_param_table_group(table, g);
        if (group->is_expert == is_expert && group->n_elements > 0)
            pack_group(p, g, group);
    }
}

/* Buckets in the order in which backward completes them: by their lowest group, descending. */
static int lowest_group(const xp_shard_plan *plan, const xp_shard_bucket *bucket) {
    return plan->pieces[bucket->first_piece + bucket->n_pieces - 1].group;
}

/* Merges the dense buckets, which stand first, with the expert buckets: each kind is in order already.
 * A dense bucket goes before an expert bucket of the same group. */
static xp_status merge_kinds(xp_shard_plan *plan, int n_dense) {
    if (n_dense == 0 || n_dense == plan->n_buckets)
        return XP_OK;
    xp_shard_bucket *dense = malloc((size_t)n_dense * sizeof *dense);
    if (!dense)
        return xp_error(XP_ENOMEM, "no memory for the plan of %d reductions", plan->n_buckets);
    memcpy(dense, plan->buckets, (size_t)n_dense * sizeof *dense);
    int out = 0, expert = n_dense;
    for (int d = 0; d < n_dense; plan->buckets[out++] = dense[d++])
        while (expert < plan->n_buckets &&
               lowest_group(plan, &plan->buckets[expert]) > lowest_group(plan, &dense[d]))
            plan->buckets[out++] = plan->buckets[expert++];
    free(dense);
    return XP_OK;
}

xp_status xp_shard_plan_create(const xp_param_table *table, int dense_ranks, int dense_rank,
                               int expert_ranks, int expert_rank, int64_t bucket_elements,
                               xp_shard_plan *plan) {
    memset(plan, 0, sizeof *plan);
    plan->n_groups = xp_param_table_n_groups(table);
    plan->groups = calloc((size_t)plan->n_groups, sizeof *plan->groups);
    if (!plan->groups)
        return xp_error(XP_ENOMEM, "no memory for the plan of %d parameter groups", plan->n_groups);
    for (int g = 0; g < plan->n_groups; g++) {
        const xp_param_group *group = xp_param_table_group(table, g);
        xp_shard_group *cut = &plan->groups[g];
        if (group->is_expert)
            cut_group(group, expert_ranks, expert_rank, cut);
        else
            cut_group(group, dense_ranks, dense_rank, cut);
        cut->state_offset = plan->state_elements;
        plan->state_elements += round_up(cut->chunk_elements, XP_GROUP_ALIGN);
    }
    int64_t bound = pieces_bound(plan, bucket_elements);
    plan->pieces = calloc((size_t)bound, sizeof *plan->pieces);
    plan->buckets = calloc((size_t)bound, sizeof *plan->buckets);
    if (!plan->pieces || !plan->buckets) {
        xp_shard_plan_destroy(plan);
        return xp_error(XP_ENOMEM, "no memory for the plan of %lld reductions", (long long)bound);
    }
    packer p = {.plan = plan, .bucket_elements = bucket_elements};
    pack_kind(&p, table, false);
    const int n_dense = plan->n_buckets;
    pack_kind(&p, table, true);
    xp_status status = merge_kinds(plan, n_dense);
    if (status != XP_OK) {
        xp_shard_plan_destroy(plan);
        return status;
    }
    for (int b = 0; b < plan->n_buckets; b++) {
        const xp_shard_bucket *bucket = &plan->buckets[b];
        int64_t elements = bucket->n_each * bucket->n_ranks;
        if (!bucket->direct && elements > plan->stage_elements)
            plan->stage_elements = elements;
    }
    return XP_OK;
}

void xp_shard_plan_destroy(xp_shard_plan *plan) {
    free(plan->groups);
    free(plan->pieces);
    free(plan->buckets);
    memset(plan, 0, sizeof *plan);
}
