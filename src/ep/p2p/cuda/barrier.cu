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
#include "ep/p2p/cuda/barrier.cuh"

/* Before writing into a peer's memory outside its window. */
static __device__ void lock(const xp_ep_barrier_args &b, int peer, outcome *o) {
    store_release(b.busy[peer] + b.rank * XP_EP_CUDA_FLAG_WORDS, b.epoch);
    __threadfence_system();
    const uint32_t failed = load_acquire(&b.abort[peer]->failed);
    if (failed != 0)
        atomicExch(&o->reported, failed);
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
            wait_for(b, peer, false, &o);
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
        fail(b, o);
}

xp_status xp_ep_cuda_launch_barrier(cudaStream_t stream, const xp_ep_barrier_args *barrier) {
    barrier_kernel<<<1, (unsigned)barrier->n_ranks * 32, 0, stream>>>(*barrier);
    return xp_cuda_check(cudaGetLastError(), "expert parallel barrier");
}

xp_status xp_ep_cuda_load_barrier(void) {
    return load_kernels(barrier_kernel);
}
