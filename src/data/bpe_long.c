/*
 * Words of any length. Places wait in one bucket a rank, in ascending order; a heap knows the ranks
 * that have a bucket. All places of the best rank are merged in one sweep, so ten million equal
 * letters cost a few sweeps over arrays instead of tens of millions of heap operations. A merge can
 * open a better rank; the sweep then pauses until that one is done.
 */
#include "data/bpe_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct bucket {
    uint32_t rank;
    int32_t left, right, result;
    int32_t *places;
    int64_t n, capacity, done;
    bool sorted, queued;
} bucket;

typedef struct merger {
    const xp_bpe *bpe;
    int32_t *ids; /* -1: swallowed by the place before */
    int32_t *next, *previous;
    int32_t n;
    bucket *buckets;
    int32_t n_buckets, bucket_capacity;
    int32_t *by_rank; /* open addressing: bucket of a rank, -1: free */
    uint32_t by_rank_mask;
    int32_t *heap; /* of buckets, best rank first */
    int32_t n_heap;
} merger;

static xp_status no_memory(void) {
    return xp_error(XP_ENOMEM, "no memory to tokenise a very long word");
}

static uint32_t rank_slot(const merger *m, uint32_t rank) {
    uint32_t slot = (rank * 0x9e3779b1u) & m->by_rank_mask;
    while (m->by_rank[slot] >= 0 && m->buckets[m->by_rank[slot]].rank != rank)
        slot = (slot + 1) & m->by_rank_mask;
    return slot;
}

static xp_status grow_buckets(merger *m) {
    int32_t capacity = m->bucket_capacity ? 2 * m->bucket_capacity : 64;
    bucket *buckets = realloc(m->buckets, (size_t)capacity * sizeof(*buckets));
    if (buckets)
        m->buckets = buckets;
    int32_t *heap = buckets ? realloc(m->heap, (size_t)capacity * sizeof(*heap)) : NULL;
    if (heap)
        m->heap = heap;
    int32_t *by_rank = heap ? realloc(m->by_rank, 2 * (size_t)capacity * sizeof(*by_rank)) : NULL;
    if (!by_rank)
        return no_memory();
    m->by_rank = by_rank;
    m->bucket_capacity = capacity;
    m->by_rank_mask = 2 * (uint32_t)capacity - 1;
    memset(by_rank, 0xff, 2 * (size_t)capacity * sizeof(*by_rank));
    for (int32_t b = 0; b < m->n_buckets; b++)
        m->by_rank[rank_slot(m, m->buckets[b].rank)] = b;
    return XP_OK;
}

static void sift_up(merger *m, int32_t i) {
    while (i > 0) {
        int32_t parent = (i - 1) / 2;
        if (m->buckets[m->heap[parent]].rank <= m->buckets[m->heap[i]].rank)
            return;
        int32_t swap = m->heap[parent];
        m->heap[parent] = m->heap[i];
        m->heap[i] = swap;
        i = parent;
    }
}

static void remove_top(merger *m) {
    m->buckets[m->heap[0]].queued = false;
    m->heap[0] = m->heap[--m->n_heap];
    for (int32_t i = 0;;) {
        int32_t best = i;
        for (int32_t child = 2 * i + 1; child <= 2 * i + 2 && child < m->n_heap; child++)
            if (m->buckets[m->heap[child]].rank < m->buckets[m->heap[best]].rank)
                best = child;
        if (best == i)
            return;
        int32_t swap = m->heap[best];
        m->heap[best] = m->heap[i];
        m->heap[i] = swap;
        i = best;
    }
}

/* Note that the tokens at `place` and after it merge, if they do. */
static xp_status offer(merger *m, int32_t place) {
    int32_t right = m->next[place];
    if (right < 0)
        return XP_OK;
    const xp_bpe_pair *pair = xp_bpe_find_pair(m->bpe, m->ids[place], m->ids[right]);
    if (!pair)
        return XP_OK;
    uint32_t slot = m->bucket_capacity ? rank_slot(m, pair->rank) : 0;
    if (!m->bucket_capacity || m->by_rank[slot] < 0) {
        if (m->n_buckets == m->bucket_capacity) {
            XP_TRY(grow_buckets(m));
            slot = rank_slot(m, pair->rank);
        }
        m->buckets[m->n_buckets] = (bucket){.rank = pair->rank,
                                            .left = m->ids[place],
                                            .right = m->ids[right],
                                            .result = pair->result,
                                            .sorted = true};
        m->by_rank[slot] = m->n_buckets++;
    }
    int32_t index = m->by_rank[slot];
    bucket *b = &m->buckets[index];
    if (b->done == b->n)
        b->done = b->n = 0;
    if (b->n == b->capacity) {
        int64_t capacity = b->capacity ? 2 * b->capacity : 16;
        int32_t *places = realloc(b->places, (size_t)capacity * sizeof(*places));
        if (!places)
            return no_memory();
        b->places = places;
        b->capacity = capacity;
    }
    b->sorted &= b->n == b->done || b->places[b->n - 1] <= place;
    b->places[b->n++] = place;
    if (!b->queued) {
        b->queued = true;
        m->heap[m->n_heap] = index;
        sift_up(m, m->n_heap++);
    }
    return XP_OK;
}

static int compare_places(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

/* One step of the best bucket: its next place. */
static xp_status merge_next(merger *m) {
    bucket *b = &m->buckets[m->heap[0]];
    if (b->done == b->n) {
        b->sorted = true;
        remove_top(m);
        return XP_OK;
    }
    if (!b->sorted) {
        qsort(b->places + b->done, (size_t)(b->n - b->done), sizeof(b->places[0]), compare_places);
        b->sorted = true;
    }
    int32_t place = b->places[b->done++];
    int32_t right = m->next[place];
    if (right < 0 || m->ids[place] != b->left || m->ids[right] != b->right)
        return XP_OK; /* something better has taken one of the two */
    m->ids[place] = b->result;
    m->ids[right] = -1;
    m->next[place] = m->next[right];
    if (m->next[right] >= 0)
        m->previous[m->next[right]] = place;
    m->next[right] = -1;
    if (m->previous[place] >= 0)
        XP_TRY(offer(m, m->previous[place]));
    return offer(m, place);
}

static xp_status run(merger *m, const char *word) {
    for (int32_t i = 0; i < m->n; i++) {
        m->ids[i] = m->bpe->byte_ids[(unsigned char)word[i]];
        m->next[i] = i + 1 < m->n ? i + 1 : -1;
        m->previous[i] = i - 1;
    }
    for (int32_t i = 0; i + 1 < m->n; i++)
        XP_TRY(offer(m, i));
    while (m->n_heap > 0)
        XP_TRY(merge_next(m));
    return XP_OK;
}

static xp_status append(const merger *m, xp_token_list *out) {
    int64_t n = 0;
    for (int32_t i = 0; i >= 0; i = m->next[i])
        n++;
    XP_TRY(xp_token_list_reserve(out, n));
    for (int32_t i = 0; i >= 0; i = m->next[i])
        out->ids[out->n++] = m->ids[i];
    return XP_OK;
}

xp_status xp_bpe_merge_long(const xp_bpe *bpe, const char *word, size_t n, xp_token_list *out) {
    if (n >= INT32_MAX)
        return xp_error(XP_ENOTSUP,
                        "a word of %zu bytes without a place to split; the limit is 2 GiB", n);
    merger m = {.bpe = bpe, .n = (int32_t)n};
    m.ids = malloc(n * sizeof(*m.ids));
    m.next = malloc(n * sizeof(*m.next));
    m.previous = malloc(n * sizeof(*m.previous));
    xp_status status = m.ids && m.next && m.previous ? XP_OK : no_memory();
    if (status == XP_OK)
        status = run(&m, word);
    if (status == XP_OK)
        status = append(&m, out);
    for (int32_t b = 0; b < m.n_buckets; b++)
        free(m.buckets[b].places);
    free(m.buckets);
    free(m.by_rank);
    free(m.heap);
    free(m.ids);
    free(m.next);
    free(m.previous);
    return status;
}
