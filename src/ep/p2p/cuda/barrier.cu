/*
 * Cross-rank barrier. One block, one warp per peer: write the payload into the peer's window, set
 * the peer's flag (release), then poll our own flag (acquire) until the peer reaches this epoch. All
 * that runs behind the barrier on any rank sees all that ran before it on every other. A flag holds
 * the epoch of the call that its writer has reached; epochs only go up, and 0 is what a window starts
 * with.
 *
 * The wait itself is p2p/barrier_wait.h: it ends early when another rank has reported a failure, when
 * this rank's host has set the host abort flag, and when its time is up. Then the rank aborts: it tells
 * its host why, and its later kernels return at once. A rank whose time is up reports to every peer; one
 * that its host has stopped does not, because the hosts tell each other.
 * A row kernel that has waited in vain leaves word in `gave_up`; the barrier behind it fails for it.
 *
 * Locks. Dispatch between threads writes into memory that the peer's caller may free once its own
 * stream has ended. A rank that is about to write sets `busy` in the peer's window and then checks
 * whether the peer has failed, while a rank that fails says so and then checks who is busy: with a
 * fence between the two on both sides, at least one sees the other. A failing rank stays in its
 * barrier until no peer is busy, that is, until the peer's flag of the end of writing has caught up.
 */
#include "ep/p2p/cuda/kernels.h"

#include "ep/p2p/cuda/flag_wait.cuh"

struct outcome {
    unsigned missing;  /* bits of ranks that did not come in time */
    unsigned reported; /* a failure that was not found here, encoded */
};

static __device__ void write_payload(const xp_ep_barrier_args &b, int peer) {
    if (b.payload_address != nullptr && lane_id() == 0)
        *(const void **)b.to[peer] = b.payload_address;
    for (int64_t i = lane_id(); b.payload_address == nullptr && i < b.n_payload; i += 32)
        b.to[peer][i] = b.payload[peer * b.stride + i];
}

static __device__ void wait_for(const xp_ep_barrier_args &b, int peer, outcome *o) {
    const xp_ep_wait_args args = {b.flags[b.rank] + peer * XP_EP_CUDA_FLAG_WORDS, b.epoch,
                                  &b.abort[b.rank]->failed, &b.status->host_abort, b.timeout_ns};
    uint32_t report = 0;
    switch (xp_ep_wait_for_flag(&args, &report)) {
    case XP_EP_WAIT_REACHED:
        break;
    case XP_EP_WAIT_REPORTED:
        atomicExch(&o->reported, report);
        break;
    case XP_EP_WAIT_HOST_ABORT:
        atomicExch(&o->reported, BY_HOST | encode(b.point, b.rank, peer));
        break;
    case XP_EP_WAIT_TIMED_OUT:
        atomicOr(&o->missing, 1u << peer);
        break;
    }
}

/* Before writing into a peer's memory outside its window. */
static __device__ void lock(const xp_ep_barrier_args &b, int peer, outcome *o) {
    store_release(b.busy[peer] + b.rank * XP_EP_CUDA_FLAG_WORDS, b.epoch);
    __threadfence_system();
    const uint32_t failed = load_acquire(&b.abort[peer]->failed);
    if (failed != 0)
        atomicExch(&o->reported, failed);
}

/* One thread. The host reads `kind` first, so it is written last. */
static __device__ void report(const xp_ep_barrier_args &b, const outcome &o) {
    volatile xp_ep_cuda_failure *f = &b.status->failure;
    if (f->kind != 0)
        return;
    const bool waited = o.missing != 0;
    const int missing = waited ? __ffs((int)o.missing) - 1 : (int)(o.reported & 0xff);
    f->reporter = waited ? b.rank : (int)(o.reported >> 8 & 0xff);
    f->missing = missing;
    f->n_missing = waited ? __popc(o.missing) : 1;
    f->point = waited ? b.point : (int)(o.reported >> 16 & 0xff);
    f->phase = b.phase;
    f->expected = b.epoch;
    f->seen = waited ? load_acquire(b.flags[b.rank] + missing * XP_EP_CUDA_FLAG_WORDS) : 0;
    f->round = b.round;
    __threadfence_system();
    f->kind = waited                        ? XP_EP_BARRIER_TIMED_OUT
              : (o.reported & BY_HOST) != 0 ? XP_EP_BARRIER_HOST_ABORT
                                            : XP_EP_BARRIER_REPORTED;
}

/* All threads. */
static __device__ void fail(const xp_ep_barrier_args &b, int peer, const outcome &o) {
    const uint32_t code =
        o.missing != 0 ? encode(b.point, b.rank, __ffs((int)o.missing) - 1) : o.reported;
    xp_ep_abort_flags *own = b.abort[b.rank];
    if (threadIdx.x == 0) {
        own->aborted = 1;
        store_release(&own->failed, code);
        report(b, o);
    }
    __threadfence_system();
    __syncthreads();
    if (lane_id() != 0 || peer == b.rank)
        return;
    if ((code & BY_HOST) == 0 && load_acquire(&b.abort[peer]->failed) == 0)
        store_release(&b.abort[peer]->failed, code);
    __threadfence_system();
    xp_ep_wait_timer timer = {now_ns(), 0};
    for (;;) {
        const uint32_t busy = load_acquire(b.busy[b.rank] + peer * XP_EP_CUDA_FLAG_WORDS);
        const uint32_t done = load_acquire(b.own_data + peer * XP_EP_CUDA_FLAG_WORDS);
        if (busy == 0 || !xp_ep_is_behind(done, busy) || xp_ep_wait_is_over(&timer, b.timeout_ns))
            return;
        pause_poll();
    }
}

/* Every rank knows the number of rounds, so all skip the same barriers. */
static __device__ bool is_needed(const xp_ep_barrier_args &b) {
    return b.min_rounds < 0 ||
           (b.totals[TOTAL_REFUSED] == 0 && b.totals[TOTAL_ROUNDS] > b.min_rounds);
}

/* One block of n_ranks warps; warp p is about peer p. */
static __global__ void barrier_kernel(const xp_ep_barrier_args b) {
    __shared__ outcome o;
    const int peer = (int)threadIdx.x / 32;
    if (b.abort[b.rank]->aborted != 0)
        return;
    if (threadIdx.x == 0) {
        o = {0, 0};
        b.abort[b.rank]->n_started = b.abort[b.rank]->n_taken = 0;
    }
    if (!is_needed(b))
        return;
    write_payload(b, peer);
    __threadfence_system();
    __syncthreads();
    if (!b.waits)
        return;
    const uint64_t began = now_ns();
    const uint32_t gave_up = b.abort[b.rank]->gave_up;
    if (lane_id() == 0) {
        store_release(b.flags[peer] + b.rank * XP_EP_CUDA_FLAG_WORDS, b.epoch);
        if (gave_up == 0)
            wait_for(b, peer, &o);
        else if (peer == b.rank)
            o.reported = gave_up;
    }
    __syncthreads();
    bool failed = o.missing != 0 || o.reported != 0;
    if (!failed && b.locks) {
        if (lane_id() == 0 && peer != b.rank)
            lock(b, peer, &o);
        __syncthreads();
        failed = o.reported != 0;
        if (failed && lane_id() == 0 && peer != b.rank)
            store_release(b.busy[peer] + b.rank * XP_EP_CUDA_FLAG_WORDS, 0);
    }
    if (threadIdx.x == 0)
        atomicAdd(&b.status->wait_ns, (unsigned long long)max((long long)(now_ns() - began), 0LL));
    if (failed)
        fail(b, peer, o);
}

xp_status xp_ep_cuda_launch_barrier(cudaStream_t stream, const xp_ep_barrier_args *barrier) {
    barrier_kernel<<<1, (unsigned)barrier->n_ranks * 32, 0, stream>>>(*barrier);
    return xp_cuda_check(cudaGetLastError(), "expert parallel barrier");
}

xp_status xp_ep_cuda_load_barrier(void) {
    return load_kernels(barrier_kernel);
}
