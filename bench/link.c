#include "link.h"

#include <stdlib.h>
#include "core/file.h"

#define GPU_COPIES                                                                                 \
    4 /* long enough for the ranks' starts, some tens of microseconds apart, not to count */

/* Whether all ranks can copy into the memory of the next. */
static xp_status find_reach(const xp_bench_link *link, int gpu, bool *reaches) {
    const xp_bench_rank *r = link->rank;
    double mine = gpu, *all = calloc((size_t)r->n_ranks, sizeof *all);
    if (!all)
        return xp_error(XP_ENOMEM, "no memory for %d ranks", r->n_ranks);
    xp_status status = xp_comm_all_gather(r->world, &mine, all, 1, XP_F64, NULL);
    const int next = status == XP_OK ? (int)all[(r->rank + 1) % r->n_ranks] : gpu;
    free(all);
    *reaches = true;
    if (status == XP_OK && link->backend && next != gpu)
        status = link->backend->peer_access->can_reach(gpu, next, reaches);
    double least = *reaches;
    if (status == XP_OK)
        status = xp_comm_all_reduce(r->world, &least, &least, 1, XP_F64, XP_MIN, NULL);
    *reaches = least > 0;
    return status;
}

xp_status xp_bench_link_open(xp_bench_link *link, xp_bench_rank *rank, xp_stream *stream, int gpu,
                             const char *from, size_t n_bytes) {
    *link = (xp_bench_link){
        .rank = rank, .stream = stream, .from = from, .n_bytes = n_bytes, .n_copies = 1};
    bool reaches = false;
    if (!rank->world || !xp_comm_is_one_node(rank->world))
        return XP_OK;
    if (gpu >= 0) {
        XP_TRY(xp_cuda_backend_get(&link->backend));
        link->n_copies = GPU_COPIES;
    }
    XP_TRY(find_reach(link, gpu, &reaches));
    if (!reaches)
        return XP_OK;
    return xp_comm_window_create(rank->world, xp_stream_device(stream), n_bytes, "link",
                                 &link->window);
}

static xp_status queue_copies(void *context) {
    const xp_bench_link *link = context;
    const xp_bench_rank *r = link->rank;
    void *to = xp_window_peer(link->window, (r->rank + 1) % r->n_ranks);
    for (int i = 0; i < link->n_copies; i++)
        XP_TRY(xp_copy(link->stream, to, link->from, link->n_bytes));
    return XP_OK;
}

static xp_status time_copies(xp_bench_link *link, double *seconds) {
    if (link->backend)
        return link->backend->time_call(link->stream, queue_copies, link, seconds);
    const double began = xp_time_s();
    XP_TRY(queue_copies(link));
    XP_TRY(xp_stream_sync(link->stream));
    *seconds = xp_time_s() - began;
    return XP_OK;
}

static xp_status sample(xp_bench_link *link, bool sends, xp_bench_samples *samples) {
    double seconds = 0;
    XP_TRY(xp_comm_barrier(link->rank->world, NULL));
    if (sends)
        XP_TRY(time_copies(link, &seconds));
    XP_TRY(xp_comm_all_reduce(link->rank->world, &seconds, &seconds, 1, XP_F64, XP_MAX, NULL));
    xp_bench_samples_add(samples, (double)link->n_bytes * link->n_copies / (seconds + 1e-12));
    return XP_OK;
}

xp_status xp_bench_link_sample(xp_bench_link *link) {
    if (!link->window)
        return XP_OK;
    const xp_bench_rank *r = link->rank;
    XP_TRY(sample(link, true, &link->both));
    return sample(link, r->rank % 2 == 0 && r->rank + 1 < r->n_ranks, &link->one);
}

void xp_bench_link_close(xp_bench_link *link) {
    xp_comm_window_destroy(link->window);
    link->window = NULL;
}
