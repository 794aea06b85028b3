#include <stdlib.h>
#include "data/bpe.h"

xp_status xp_token_list_reserve(xp_token_list *list, int64_t n) {
    if (list->capacity - list->n >= n)
        return XP_OK;
    int64_t capacity = list->capacity + list->capacity / 2;
    if (capacity < list->n + n)
        capacity = list->n + n;
    if (capacity < 64)
        capacity = 64;
    int32_t *ids = realloc(list->ids, (size_t)capacity * sizeof(*ids));
    if (!ids)
        return xp_error(XP_ENOMEM, "no memory for %lld token ids", (long long)capacity);
    list->ids = ids;
    list->capacity = capacity;
    return XP_OK;
}

void xp_token_list_free(xp_token_list *list) {
    free(list->ids);
    *list = (xp_token_list){0};
}
