/*
 * Plan kernels that make the exchanges themselves: each rank has a GPU of its own. The block that is done
 * last sends the payload and sets the peers' flags (release); every block of the next kernel polls this
 * rank's flags (acquire). A block never waits for another block of its grid, and what it waits for are
 * kernels that a peer runs before its own kernel of the same kind: so each of them needs room for one
 * block to go on. The first block that waits in vain aborts for the rank, as a barrier does; a kernel
 * that still runs ends, those behind it return at once.
 */
#include "ep/common/cuda/plan_recv.cuh"
#include "ep/p2p/cuda/barrier.cuh"

/* All threads. False: this barrier has failed. */
static __device__ bool wait_for_peers(const xp_ep_barrier_args &b) {
    __shared__ outcome o;
    __shared__ bool aborts;
    const uint64_t began = now_ns();
    if (threadIdx.x == 0) {
        o = {0, 0};
        aborts = false;
    }
    __syncthreads();
    /* At most a warp. No peer can be ahead: before it reaches a point of the next plan it waits for this
     * rank's end of this one. */
    if ((int)threadIdx.x < b.n_ranks)
        wait_for(b, (int)threadIdx.x, true, &o);
    __syncthreads();
    if (blockIdx.x == 0 && threadIdx.x == 0)
        atomicAdd(&b.status->wait_ns, (unsigned long long)max((long long)(now_ns() - began), 0LL));
    if (o.missing == 0 && o.reported == 0)
        return true;
    if (threadIdx.x == 0)
        aborts = atomicExch(&b.abort[b.rank]->failing, 1u) == 0;
    __syncthreads();
    if (aborts)
        fail(b, o);
    return false;
}

/* All threads of a block that sees all that the others wait for. */
static __device__ void tell_peers(const xp_ep_barrier_args &b) {
    for (int peer = (int)threadIdx.x / 32; peer < b.n_ranks; peer += (int)blockDim.x / 32) {
        write_payload(b, peer);
        __syncwarp();
        if (lane_id() == 0) {
            __threadfence_system();
            store_release(b.flags[peer] + b.rank * XP_EP_CUDA_FLAG_WORDS, b.epoch);
        }
    }
}

/* What a kernel waits for first, and what it tells at its end; see no_exchange. */
struct p2p_exchange {
    enum { TELLS = 1 };
    xp_ep_barrier_args before, after;
    __device__ bool wait(const xp_ep_cuda_plan &p) const {
        (void)p;
        return wait_for_peers(before);
    }
    __device__ void tell(const xp_ep_cuda_plan &p) const {
        (void)p;
        tell_peers(after);
    }
};

xp_status xp_ep_cuda_p2p_plan(cudaStream_t stream, const xp_ep_cuda_plan *p,
                              const xp_ep_plan_barriers *b, const int32_t *starts) {
    /* The first kernel waits for nobody, the last tells nobody. */
    launch_count(stream, p, p2p_exchange{b->counts, b->counts});
    launch_list(stream, p, p2p_exchange{b->counts, b->assignments});
    launch_place(stream, p, p2p_exchange{b->assignments, b->starts});
    launch_rounds(stream, p, starts, p2p_exchange{b->starts, b->starts});
    return xp_cuda_check(cudaGetLastError(), "expert parallel plan");
}

xp_status xp_ep_cuda_load_p2p_plan(void) {
    XP_TRY(load_kernels(place_kernel<p2p_exchange>));
    XP_TRY(load_wide_kernel((const void *)count_kernel<p2p_exchange>));
    XP_TRY(load_wide_kernel((const void *)list_kernel<p2p_exchange>));
    XP_TRY(load_wide_kernel((const void *)count_rounds_kernel));
    return load_wide_kernel((const void *)place_rounds_kernel<p2p_exchange>);
}
