#include "tensor_set.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void tensor_set_init(tensor_set *set) {
    memset(set, 0, sizeof *set);
    pthread_mutex_init(&set->lock, NULL);
}

void tensor_set_free(tensor_set *set) {
    for (int i = 0; i < set->n; i++)
        free(set->items[i].data);
    free(set->items);
    pthread_mutex_destroy(&set->lock);
    memset(set, 0, sizeof *set);
}

const named_tensor *tensor_set_find(const tensor_set *set, const char *name) {
    for (int i = 0; i < set->n; i++)
        if (strcmp(set->items[i].name, name) == 0)
            return &set->items[i];
    return NULL;
}

static named_tensor *find_or_add(tensor_set *set, const char *name, int64_t total) {
    const named_tensor *found = tensor_set_find(set, name);
    if (found)
        return found->n == total ? &set->items[found - set->items] : NULL;
    if (set->n == set->capacity) {
        int capacity = 2 * set->capacity + 256;
        named_tensor *grown = realloc(set->items, (size_t)capacity * sizeof *grown);
        if (!grown)
            return NULL;
        set->items = grown;
        set->capacity = capacity;
    }
    named_tensor *t = &set->items[set->n];
    *t = (named_tensor){.n = total, .data = calloc((size_t)total + 1, sizeof(float))};
    if (!t->data)
        return NULL;
    snprintf(t->name, sizeof t->name, "%s", name);
    set->n++;
    return t;
}

bool tensor_set_put(tensor_set *set, const char *name, int64_t total, int64_t first, int64_t n,
                    const float *data) {
    pthread_mutex_lock(&set->lock);
    named_tensor *t =
        first >= 0 && n >= 0 && first + n <= total ? find_or_add(set, name, total) : NULL;
    if (t) {
        memcpy(t->data + first, data, (size_t)n * sizeof *data);
        t->n_filled += n;
    }
    pthread_mutex_unlock(&set->lock);
    return t != NULL;
}

bool tensor_set_complete(const tensor_set *set) {
    for (int i = 0; i < set->n; i++)
        if (set->items[i].n_filled != set->items[i].n)
            return false;
    return set->n > 0;
}

bool tensor_set_equal(const tensor_set *a, const tensor_set *b, const char **differs) {
    *differs = NULL;
    for (int i = 0; i < a->n; i++) {
        const named_tensor *x = &a->items[i];
        const named_tensor *y = tensor_set_find(b, x->name);
        if (!y || x->n != y->n || memcmp(x->data, y->data, (size_t)x->n * sizeof(float)) != 0) {
            *differs = x->name;
            return false;
        }
    }
    return a->n == b->n;
}

static double distance(const named_tensor *a, const named_tensor *b) {
    double difference = 0;
    double norm = 0;
    for (int64_t i = 0; i < a->n; i++) {
        double d = (double)a->data[i] - (double)b->data[i];
        difference += d * d;
        norm += (double)a->data[i] * (double)a->data[i];
    }
    return difference == 0 ? 0 : sqrt(difference / norm);
}

double tensor_set_distance(const tensor_set *a, const tensor_set *b, const char **worst) {
    double most = 0;
    *worst = NULL;
    if (a->n != b->n)
        return INFINITY;
    for (int i = 0; i < a->n; i++) {
        const named_tensor *other = tensor_set_find(b, a->items[i].name);
        bool same_shape = other && other->n == a->items[i].n;
        double d = same_shape ? distance(&a->items[i], other) : INFINITY;
        if (!(d <= most)) {
            most = d;
            *worst = a->items[i].name;
        }
    }
    return most;
}

int64_t tensor_set_count(const tensor_set *set, const char *part) {
    int64_t n = 0;
    for (int i = 0; i < set->n; i++)
        if (strstr(set->items[i].name, part))
            n += set->items[i].n;
    return n;
}
