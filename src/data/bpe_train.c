/*
 * Every pair knows its count and the words it may be in. A merge rewrites only those words and
 * corrects the counts of the pairs beside it. Counts in the heap may be too high: a pair that comes
 * up with an old count goes back with the right one.
 */
#include "data/bpe_train.h"

#include <stdlib.h>
#include <string.h>
#include "data/tokenizer_internal.h"

#define MIN_COUNT 2

typedef struct pair_info {
    int32_t left, right;
    int64_t count;
    int32_t *words; /* may hold a word twice, or one that has lost the pair */
    int32_t n_words, capacity;
    int32_t touched; /* the last round that raised the count */
    bool merged; /* stands in the list of merges; comes up again when another merge makes one of its
                    sides */
} pair_info;

typedef struct heap_entry {
    int64_t count;
    int32_t pair;
} heap_entry;

typedef struct trainer {
    const xp_word_counts *counts;
    xp_bpe_vocabulary *v;
    int32_t *symbols; /* word w is symbols[words[w].offset ..], lengths[w] of them */
    int32_t *lengths;
    pair_info *pairs;
    int32_t n_pairs, pair_capacity;
    int32_t *table; /* open addressing: pair by its two tokens, -1: free */
    uint32_t mask;
    heap_entry *heap;
    int64_t n_heap, heap_capacity;
    int32_t *touched; /* pairs whose count the running merge raised */
    int32_t n_touched, touched_capacity;
    int32_t round;     /* 0: counting; then one a merge */
    int32_t *by_bytes; /* open addressing: token by its bytes, -1: free */
    uint32_t by_bytes_mask;
} trainer;

static xp_status no_memory(void) {
    return xp_error(XP_ENOMEM, "no memory to train a tokenizer");
}

static uint32_t pair_slot(const trainer *t, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint32_t slot = (uint32_t)((key ^ key >> 29) * 0x9e3779b97f4a7c15u >> 32) & t->mask;
    while (t->table[slot] >= 0 &&
           (t->pairs[t->table[slot]].left != left || t->pairs[t->table[slot]].right != right))
        slot = (slot + 1) & t->mask;
    return slot;
}

static xp_status grow_pairs(trainer *t) {
    int32_t capacity = t->pair_capacity ? 2 * t->pair_capacity : 4096;
    pair_info *pairs = realloc(t->pairs, (size_t)capacity * sizeof(*pairs));
    if (pairs)
        t->pairs = pairs;
    int32_t *table = pairs ? realloc(t->table, 2 * (size_t)capacity * sizeof(*table)) : NULL;
    if (!table)
        return no_memory();
    t->table = table;
    t->pair_capacity = capacity;
    t->mask = 2 * (uint32_t)capacity - 1;
    memset(table, 0xff, 2 * (size_t)capacity * sizeof(*table));
    for (int32_t p = 0; p < t->n_pairs; p++)
        table[pair_slot(t, t->pairs[p].left, t->pairs[p].right)] = p;
    return XP_OK;
}

static bool before(const trainer *t, heap_entry a, heap_entry b) {
    const pair_info *x = &t->pairs[a.pair], *y = &t->pairs[b.pair];
    if (a.count != b.count)
        return a.count > b.count;
    return x->left != y->left ? x->left < y->left : x->right < y->right;
}

static xp_status heap_push(trainer *t, int32_t pair) {
    if (t->n_heap == t->heap_capacity) {
        int64_t capacity = t->heap_capacity ? 2 * t->heap_capacity : 4096;
        heap_entry *heap = realloc(t->heap, (size_t)capacity * sizeof(*heap));
        if (!heap)
            return no_memory();
        t->heap = heap;
        t->heap_capacity = capacity;
    }
    heap_entry entry = {t->pairs[pair].count, pair};
    int64_t i = t->n_heap++;
    for (; i > 0 && before(t, entry, t->heap[(i - 1) / 2]); i = (i - 1) / 2)
        t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = entry;
    return XP_OK;
}

static heap_entry heap_pop(trainer *t) {
    heap_entry top = t->heap[0], last = t->heap[--t->n_heap];
    int64_t i = 0;
    for (int64_t child = 1; child < t->n_heap; child = 2 * i + 1) {
        if (child + 1 < t->n_heap && before(t, t->heap[child + 1], t->heap[child]))
            child++;
        if (!before(t, t->heap[child], last))
            break;
        t->heap[i] = t->heap[child];
        i = child;
    }
    t->heap[i] = last;
    return top;
}

/* Add `change` occurrences of a pair in `word`. */
static xp_status change_count(trainer *t, int32_t left, int32_t right, int64_t change,
                              int32_t word) {
    if (t->n_pairs == t->pair_capacity)
        XP_TRY(grow_pairs(t));
    uint32_t slot = pair_slot(t, left, right);
    if (t->table[slot] < 0) {
        t->pairs[t->n_pairs] = (pair_info){.left = left, .right = right, .touched = -1};
        t->table[slot] = t->n_pairs++;
    }
    int32_t index = t->table[slot];
    pair_info *pair = &t->pairs[index];
    pair->count += change;
    if (change < 0)
        return XP_OK;
    if (pair->n_words == 0 || pair->words[pair->n_words - 1] != word) {
        if (pair->n_words == pair->capacity) {
            int32_t capacity = pair->capacity ? 2 * pair->capacity : 4;
            int32_t *words = realloc(pair->words, (size_t)capacity * sizeof(*words));
            if (!words)
                return no_memory();
            pair->words = words;
            pair->capacity = capacity;
        }
        pair->words[pair->n_words++] = word;
    }
    if (pair->touched == t->round)
        return XP_OK;
    pair->touched = t->round;
    if (t->n_touched == t->touched_capacity) {
        int32_t capacity = t->touched_capacity ? 2 * t->touched_capacity : 1024;
        int32_t *touched = realloc(t->touched, (size_t)capacity * sizeof(*touched));
        if (!touched)
            return no_memory();
        t->touched = touched;
        t->touched_capacity = capacity;
    }
    t->touched[t->n_touched++] = index;
    return XP_OK;
}

static xp_status push_touched(trainer *t) {
    for (int32_t i = 0; i < t->n_touched; i++)
        XP_TRY(heap_push(t, t->touched[i]));
    t->n_touched = 0;
    return XP_OK;
}

static xp_status add_token(xp_bpe_vocabulary *v, const char *bytes, size_t n, int32_t *id) {
    if (v->n_tokens == v->capacity) {
        int32_t capacity = v->capacity ? 2 * v->capacity : 1024;
        int64_t *offsets = realloc(v->offsets, ((size_t)capacity + 1) * sizeof(*offsets));
        if (!offsets)
            return no_memory();
        v->offsets = offsets;
        v->capacity = capacity;
    }
    v->offsets[v->n_tokens] = (int64_t)v->bytes.length;
    xp_text_add(&v->bytes, bytes, n);
    if (v->bytes.failed)
        return no_memory();
    *id = v->n_tokens++;
    v->offsets[v->n_tokens] = (int64_t)v->bytes.length;
    return XP_OK;
}

static xp_status start(trainer *t) {
    int32_t byte_ids[256], id = 0;
    for (uint32_t c = 0; c < 0x144; c++)
        for (int b = 0; b < 256; b++)
            if (xp_byte_level_char((unsigned char)b) == c) {
                char byte = (char)b;
                XP_TRY(add_token(t->v, &byte, 1, &id));
                byte_ids[b] = id;
            }
    const xp_word_counts *c = t->counts;
    t->symbols = malloc((c->bytes.length + 1) * sizeof(*t->symbols));
    t->lengths = malloc(((size_t)c->n_words + 1) * sizeof(*t->lengths));
    if (!t->symbols || !t->lengths)
        return no_memory();
    for (size_t i = 0; i < c->bytes.length; i++)
        t->symbols[i] = byte_ids[(unsigned char)c->bytes.data[i]];
    for (int32_t w = 0; w < c->n_words; w++) {
        const xp_word *word = &c->words[w];
        t->lengths[w] = word->n;
        for (int64_t i = word->offset; i + 1 < word->offset + word->n; i++)
            XP_TRY(change_count(t, t->symbols[i], t->symbols[i + 1], word->count, w));
    }
    return push_touched(t);
}

/* The token that two others make: one that is there already, when another split has made it. */
static xp_status joined_token(trainer *t, int32_t left, int32_t right, int32_t *id) {
    xp_bpe_vocabulary *v = t->v;
    xp_text joined = {0};
    xp_text_add(&joined, v->bytes.data + v->offsets[left],
                (size_t)(v->offsets[left + 1] - v->offsets[left]));
    xp_text_add(&joined, v->bytes.data + v->offsets[right],
                (size_t)(v->offsets[right + 1] - v->offsets[right]));
    if (joined.failed) {
        xp_text_free(&joined);
        return no_memory();
    }
    uint32_t hash = 0x811c9dc5u;
    for (size_t i = 0; i < joined.length; i++)
        hash = (hash ^ (unsigned char)joined.data[i]) * 0x01000193u;
    uint32_t slot = (hash ^ hash >> 15) & t->by_bytes_mask;
    for (; (*id = t->by_bytes[slot]) >= 0; slot = (slot + 1) & t->by_bytes_mask)
        if ((size_t)(v->offsets[*id + 1] - v->offsets[*id]) == joined.length &&
            !memcmp(v->bytes.data + v->offsets[*id], joined.data, joined.length))
            break;
    xp_status status = XP_OK;
    if (*id < 0) {
        status = add_token(v, joined.data, joined.length, id);
        if (status == XP_OK)
            t->by_bytes[slot] = *id;
    }
    xp_text_free(&joined);
    return status;
}

/* Replace the pair in one word, left to right. */
static xp_status merge_in_word(trainer *t, int32_t w, int32_t left, int32_t right, int32_t made) {
    int32_t *s = t->symbols + t->counts->words[w].offset;
    int64_t count = t->counts->words[w].count;
    int32_t n = 0;
    for (int32_t i = 0; i < t->lengths[w]; i++) {
        if (s[i] != left || i + 1 == t->lengths[w] || s[i + 1] != right) {
            s[n++] = s[i];
            continue;
        }
        if (n > 0) {
            XP_TRY(change_count(t, s[n - 1], left, -count, w));
            XP_TRY(change_count(t, s[n - 1], made, count, w));
        }
        if (i + 2 < t->lengths[w]) {
            XP_TRY(change_count(t, right, s[i + 2], -count, w));
            XP_TRY(change_count(t, made, s[i + 2], count, w));
        }
        XP_TRY(change_count(t, left, right, -count, w));
        s[n++] = made;
        i++;
    }
    t->lengths[w] = n;
    return XP_OK;
}

static xp_status add_merge(xp_bpe_vocabulary *v, xp_bpe_merge merge) {
    if (v->n_merges == v->merge_capacity) {
        int32_t capacity = v->merge_capacity ? 2 * v->merge_capacity : 1024;
        xp_bpe_merge *merges = realloc(v->merges, (size_t)capacity * sizeof(*merges));
        if (!merges)
            return no_memory();
        v->merges = merges;
        v->merge_capacity = capacity;
    }
    v->merges[v->n_merges++] = merge;
    return XP_OK;
}

static int compare_ints(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

static xp_status merge_pair(trainer *t, int32_t index) {
    int32_t left = t->pairs[index].left, right = t->pairs[index].right, made = 0;
    t->round++;
    XP_TRY(joined_token(t, left, right, &made));
    int32_t *words = t->pairs[index].words;
    int32_t n = t->pairs[index].n_words;
    t->pairs[index].words = NULL;
    t->pairs[index].n_words = t->pairs[index].capacity = 0;
    qsort(words, (size_t)n, sizeof(*words), compare_ints);
    xp_status status = XP_OK;
    for (int32_t i = 0; i < n && status == XP_OK; i++)
        if (i == 0 || words[i] != words[i - 1])
            status = merge_in_word(t, words[i], left, right, made);
    free(words);
    XP_TRY(status);
    if (!t->pairs[index].merged)
        XP_TRY(add_merge(t->v, (xp_bpe_merge){left, right, made}));
    t->pairs[index].merged = true;
    return push_touched(t);
}

static xp_status learn(trainer *t, int32_t n_tokens) {
    uint32_t size = 1024;
    while (size / 2 < (uint32_t)n_tokens)
        size *= 2;
    t->by_bytes = malloc(size * sizeof(*t->by_bytes));
    if (!t->by_bytes)
        return no_memory();
    memset(t->by_bytes, 0xff, size * sizeof(*t->by_bytes));
    t->by_bytes_mask = size - 1;
    XP_TRY(start(t));
    while (t->v->n_tokens < n_tokens && t->n_heap > 0) {
        heap_entry top = heap_pop(t);
        int64_t count = t->pairs[top.pair].count;
        if (count < MIN_COUNT || top.count < count)
            continue; /* gone, or a newer entry stands for it */
        if (top.count > count)
            XP_TRY(heap_push(t, top.pair));
        else
            XP_TRY(merge_pair(t, top.pair));
    }
    return XP_OK;
}

xp_status xp_bpe_train(const xp_word_counts *counts, int32_t n_tokens,
                       xp_bpe_vocabulary *vocabulary) {
    *vocabulary = (xp_bpe_vocabulary){0};
    trainer t = {.counts = counts, .v = vocabulary};
    xp_status status = learn(&t, n_tokens);
    for (int32_t p = 0; p < t.n_pairs; p++)
        free(t.pairs[p].words);
    free(t.pairs);
    free(t.table);
    free(t.heap);
    free(t.touched);
    free(t.by_bytes);
    free(t.symbols);
    free(t.lengths);
    if (status != XP_OK)
        xp_bpe_vocabulary_free(vocabulary);
    return status;
}

void xp_bpe_vocabulary_free(xp_bpe_vocabulary *vocabulary) {
    xp_text_free(&vocabulary->bytes);
    free(vocabulary->offsets);
    free(vocabulary->merges);
    *vocabulary = (xp_bpe_vocabulary){0};
}
