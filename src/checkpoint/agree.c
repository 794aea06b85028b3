#include "checkpoint/agree.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "comm/provider.h"
#include "core/error.h"

#define ERROR_BYTES 1024

int xp_agree_rank(const xp_comm *comm) {
    return comm == NULL ? 0 : xp_comm_rank(comm);
}

int xp_agree_size(const xp_comm *comm) {
    return comm == NULL ? 1 : xp_comm_size(comm);
}

xp_status xp_agree_all(xp_comm *comm, bool mine, bool *all) {
    int64_t value = mine;
    if (comm != NULL)
        XP_TRY(xp_comm_all_reduce(comm, &value, &value, 1, XP_I64, XP_MIN, NULL));
    *all = value == 1;
    return XP_OK;
}

/** What the first failing rank has to say. */
typedef struct failure {
    int64_t status;
    char text[ERROR_BYTES];
} failure;

static xp_status exchange_failure(xp_comm *comm, int64_t *first_failed, failure *cause) {
    XP_TRY(xp_comm_all_reduce(comm, first_failed, first_failed, 1, XP_I64, XP_MIN, NULL));
    if (*first_failed == xp_comm_size(comm))
        return XP_OK;
    return xp_comm_broadcast(comm, cause, sizeof *cause, (int)*first_failed, NULL);
}

xp_status xp_agree(xp_comm *comm, xp_status status) {
    if (comm == NULL)
        return status;
    failure mine = {.status = status};
    if (status != XP_OK)
        snprintf(mine.text, sizeof mine.text, "%s", xp_last_error());
    /* The lowest rank that failed: one number, so that agreement costs one small reduction while
     * all goes well. */
    int64_t first_failed = status == XP_OK ? xp_comm_size(comm) : xp_comm_rank(comm);
    failure cause = mine;
    xp_status exchanged = exchange_failure(comm, &first_failed, &cause);
    if (status != XP_OK) /* the own cause, also when the peers are gone */
        return xp_error(status, "%s", mine.text);
    if (exchanged != XP_OK || first_failed == xp_comm_size(comm))
        return exchanged;
    cause.text[sizeof cause.text - 1] = '\0';
    const int rank = xp_comm_world_rank(comm, (int)first_failed);
    xp_error((xp_status)cause.status, "rank %d: %s", rank, cause.text);
    xp_error_set_rank(rank);
    return (xp_status)cause.status;
}

/** Room for all texts, the same step on every rank so that a failed allocation is everyone's
 * failure. */
static xp_status allocate_texts(xp_comm *comm, int64_t n_bytes, char **all) {
    *all = malloc((size_t)n_bytes + 1);
    return xp_agree(
        comm, *all != NULL ? XP_OK : xp_error(XP_ENOMEM, "no memory for a checkpoint's manifest"));
}

/** counts: [4 * size] zeros: send bytes, send offsets, receive bytes, receive offsets. */
static xp_status send_to_root(xp_comm *comm, const xp_text *mine, char *all, const int64_t *offsets,
                              int64_t *counts) {
    int size = xp_comm_size(comm);
    counts[0] = (int64_t)mine->length;
    if (xp_comm_rank(comm) == 0) {
        for (int r = 0; r < size; r++) {
            counts[2 * size + r] = offsets[r + 1] - offsets[r];
            counts[3 * size + r] = offsets[r];
        }
    }
    xp_alltoallv_args args = {.send = mine->data,
                              .send_bytes = counts,
                              .send_offsets = counts + size,
                              .recv = all,
                              .recv_bytes = counts + 2 * size,
                              .recv_offsets = counts + 3 * size};
    return xp_comm_all_to_allv(comm, &args, NULL);
}

static xp_status gather_ranks(xp_comm *comm, const xp_text *mine, char **all, int64_t **offsets) {
    int size = xp_comm_size(comm);
    int64_t *places = calloc((size_t)size + 1, sizeof *places);
    int64_t *counts = calloc(4 * (size_t)size, sizeof *counts);
    int64_t length = (int64_t)mine->length;
    xp_status status = places != NULL && counts != NULL
                           ? XP_OK
                           : xp_error(XP_ENOMEM, "no memory for a checkpoint's manifest");
    status = xp_agree(comm, status);
    if (status == XP_OK)
        status = xp_comm_all_gather(comm, &length, places + 1, 1, XP_I64, NULL);
    for (int r = 0; r < size && status == XP_OK; r++)
        places[r + 1] += places[r];
    if (status == XP_OK)
        status = allocate_texts(comm, xp_comm_rank(comm) == 0 ? places[size] : 0, all);
    if (status == XP_OK)
        status = send_to_root(comm, mine, *all, places, counts);
    free(counts);
    *offsets = places;
    return status;
}

xp_status xp_agree_gather(xp_comm *comm, const xp_text *mine, char **all, int64_t **offsets) {
    *all = NULL;
    *offsets = NULL;
    xp_status status = XP_OK;
    if (comm != NULL) {
        status = gather_ranks(comm, mine, all, offsets);
    } else {
        *all = malloc(mine->length + 1);
        *offsets = calloc(2, sizeof **offsets);
        if (*all != NULL && *offsets != NULL) {
            memcpy(*all, mine->data, mine->length);
            (*offsets)[1] = (int64_t)mine->length;
        } else {
            status = xp_error(XP_ENOMEM, "no memory for a checkpoint's manifest");
        }
    }
    if (status != XP_OK || xp_agree_rank(comm) != 0) {
        free(*all);
        free(*offsets);
        *all = NULL;
        *offsets = NULL;
    }
    return status;
}
