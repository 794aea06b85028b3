/**
 * What a cross-rank barrier is made of: barrier.cu makes a kernel of it, and the plan kernels (plan.cu)
 * do its two halves, telling and waiting, in kernels that have other work.
 */
#ifndef XP_EP_P2P_CUDA_BARRIER_CUH
#define XP_EP_P2P_CUDA_BARRIER_CUH

#include "ep/p2p/cuda/flag_wait.cuh"

/** What a barrier has come to. */
struct outcome {
    unsigned missing;  /* bits of ranks that did not come in time */
    unsigned reported; /* a failure that was not found here, encoded */
};

/** One warp. */
static __device__ void write_payload(const xp_ep_barrier_args &b, int peer) {
    if (b.payload_address != nullptr && lane_id() == 0)
        *(const void **)b.to[peer] = b.payload_address;
    for (int64_t i = lane_id(); b.payload_address == nullptr && i < b.n_payload; i += 32)
        b.to[peer][i] = b.payload[peer * b.stride + i];
}

/** One thread. See xp_ep_wait_args.exact. */
static __device__ void wait_for(const xp_ep_barrier_args &b, int peer, bool exact, outcome *o) {
    const xp_ep_wait_args args = {b.flags[b.rank] + peer * XP_EP_CUDA_FLAG_WORDS,
                                  b.epoch,
                                  &b.abort[b.rank]->failed,
                                  &b.status->host_abort,
                                  b.timeout_ns,
                                  exact};
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

/* One thread: tell a peer, and stay until it does not use this rank's memory outside the window. */
static __device__ void fail_peer(const xp_ep_barrier_args &b, int peer, uint32_t code) {
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

/** All threads of a block. */
static __device__ void fail(const xp_ep_barrier_args &b, const outcome &o) {
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
    for (int peer = (int)threadIdx.x / 32; peer < b.n_ranks; peer += (int)blockDim.x / 32)
        if (lane_id() == 0 && peer != b.rank)
            fail_peer(b, peer, code);
}

#endif
