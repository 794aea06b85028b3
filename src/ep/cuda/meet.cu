/*
 * Meetings: one block, a warp a peer. The warp brings what the peer must know, tells it how far
 * this rank has come (release), and waits until the peer has come as far (acquire). All that runs
 * behind the meeting on any rank sees all that ran before it on every other. A flag holds the call
 * that its writer has reached; calls only go up, and 0 is what a window starts with.
 *
 * A wait ends at the latest when its time is up. A rank that waited in vain is dead: it says so to
 * its host and to every peer, and its later kernels do nothing.
 *
 * Locks. Dispatch between threads writes into memory that the peer's caller may free once its own
 * stream has ended. So who is about to write says so in the peer's window (`busy`) and then looks
 * whether the peer has failed, while who fails says so and then looks who is busy: with a fence
 * between the two on both sides at least one sees the other. A failing rank stays in its meeting
 * until no peer is busy, that is, until the peer's flag of the end of writing has caught up.
 */
#include "ep/cuda/plan_common.cuh"

enum { LOOK_EVERY_NS = 100, LONGEST_LOOK_NS = 10000000, WAITED = 1, HEARD = 2 };

static __device__ __forceinline__ void post(uint32_t *word, uint32_t value) {
    asm volatile("st.release.sys.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

static __device__ __forceinline__ uint32_t look(const uint32_t *word) {
    uint32_t value;
    asm volatile("ld.acquire.sys.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}

static __device__ __forceinline__ uint64_t now_ns() {
    uint64_t value;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(value));
    return value;
}

/* What a failed rank tells its peers: who waited for whom where. */
static __device__ __forceinline__ uint32_t encode(int point, int reporter, int missing) {
    return 0x80000000u | (uint32_t)point << 16 | (uint32_t)reporter << 8 | (uint32_t)missing;
}

/* Calls count modulo 2^32. */
static __device__ __forceinline__ bool is_behind(uint32_t seen, uint32_t wanted) {
    return (int)(seen - wanted) < 0;
}

struct outcome {
    unsigned missing; /* bits of ranks that did not come in time */
    unsigned heard;   /* another rank's failure, encoded */
};

/* How long a thread has waited. The device's timer is set by the driver now and then, back too: a
 * look counts for what it can have taken. */
struct patience {
    uint64_t last, waited;

    __device__ patience() : last(now_ns()), waited(0) {
    }
    __device__ bool is_over(uint64_t limit_ns) {
        const uint64_t now = now_ns();
        const int64_t passed = (int64_t)(now - last);
        last = now;
        waited += passed < 0 ? 0 : passed < LONGEST_LOOK_NS ? passed : LONGEST_LOOK_NS;
        return waited > limit_ns;
    }
};

static __device__ void bring(const xp_ep_cuda_meet &m, int peer) {
    if (m.shown != nullptr && lane_id() == 0)
        *(const void **)m.to[peer] = m.shown;
    for (int64_t i = lane_id(); m.shown == nullptr && i < m.n_brought; i += 32)
        m.to[peer][i] = m.brought[peer * m.stride + i];
}

static __device__ void wait_for(const xp_ep_cuda_meet &m, int peer, outcome *o) {
    patience left;
    const uint32_t *flag = m.flags[m.rank] + peer * XP_EP_CUDA_FLAG_WORDS;
    while (is_behind(look(flag), m.epoch)) {
        const uint32_t told = look(&m.fates[m.rank]->failed);
        if (told != 0) {
            atomicExch(&o->heard, told);
            return;
        }
        if (left.is_over(m.timeout_ns)) {
            atomicOr(&o->missing, 1u << peer);
            return;
        }
        __nanosleep(LOOK_EVERY_NS);
    }
}

/* Before writing into a peer's own memory. */
static __device__ void lock(const xp_ep_cuda_meet &m, int peer, outcome *o) {
    post(m.busy[peer] + m.rank * XP_EP_CUDA_FLAG_WORDS, m.epoch);
    __threadfence_system();
    const uint32_t told = look(&m.fates[peer]->failed);
    if (told != 0)
        atomicExch(&o->heard, told);
}

/* One thread: the host reads `kind` first, so it comes last. */
static __device__ void report(const xp_ep_cuda_meet &m, const outcome &o) {
    volatile xp_ep_cuda_failure *f = &m.news->failure;
    if (f->kind != 0)
        return;
    const bool waited = o.missing != 0;
    const int missing = waited ? __ffs((int)o.missing) - 1 : (int)(o.heard & 0xff);
    f->reporter = waited ? m.rank : (int)(o.heard >> 8 & 0xff);
    f->missing = missing;
    f->n_missing = waited ? __popc(o.missing) : 1;
    f->point = waited ? m.point : (int)(o.heard >> 16 & 0xff);
    f->phase = m.phase;
    f->expected = m.epoch;
    f->seen = waited ? look(m.flags[m.rank] + missing * XP_EP_CUDA_FLAG_WORDS) : 0;
    f->round = m.round;
    __threadfence_system();
    f->kind = waited ? WAITED : HEARD;
}

/* All threads. */
static __device__ void fail(const xp_ep_cuda_meet &m, int peer, const outcome &o) {
    const uint32_t code =
        o.missing != 0 ? encode(m.point, m.rank, __ffs((int)o.missing) - 1) : o.heard;
    xp_ep_cuda_fate *own = m.fates[m.rank];
    if (threadIdx.x == 0) {
        own->dead = 1;
        post(&own->failed, code);
        report(m, o);
    }
    __threadfence_system();
    __syncthreads();
    if (lane_id() != 0 || peer == m.rank)
        return;
    if (look(&m.fates[peer]->failed) == 0)
        post(&m.fates[peer]->failed, code);
    __threadfence_system();
    patience left;
    for (;;) {
        const uint32_t busy = look(m.busy[m.rank] + peer * XP_EP_CUDA_FLAG_WORDS);
        const uint32_t done = look(m.own_data + peer * XP_EP_CUDA_FLAG_WORDS);
        if (busy == 0 || !is_behind(done, busy) || left.is_over(m.timeout_ns))
            return;
        __nanosleep(LOOK_EVERY_NS);
    }
}

/* Every rank knows the number of rounds, so that all leave out the same meetings. */
static __device__ bool is_held(const xp_ep_cuda_meet &m) {
    return m.least_rounds < 0 ||
           (m.totals[TOTAL_REFUSED] == 0 && m.totals[TOTAL_ROUNDS] > m.least_rounds);
}

static __global__ void meet_kernel(const xp_ep_cuda_meet m) {
    __shared__ outcome o;
    const int peer = (int)threadIdx.x / 32;
    if (m.fates[m.rank]->dead != 0 || !is_held(m))
        return;
    if (threadIdx.x == 0)
        o = {0, 0};
    bring(m, peer);
    __threadfence_system();
    __syncthreads();
    if (!m.waits)
        return;
    const uint64_t began = now_ns();
    if (lane_id() == 0) {
        post(m.flags[peer] + m.rank * XP_EP_CUDA_FLAG_WORDS, m.epoch);
        wait_for(m, peer, &o);
    }
    __syncthreads();
    bool failed = o.missing != 0 || o.heard != 0;
    if (!failed && m.locks) {
        if (lane_id() == 0 && peer != m.rank)
            lock(m, peer, &o);
        __syncthreads();
        failed = o.heard != 0;
        if (failed && lane_id() == 0 && peer != m.rank)
            post(m.busy[peer] + m.rank * XP_EP_CUDA_FLAG_WORDS, 0);
    }
    if (threadIdx.x == 0)
        atomicAdd(&m.news->wait_ns, (unsigned long long)max((long long)(now_ns() - began), 0LL));
    if (failed)
        fail(m, peer, o);
}

xp_status xp_ep_cuda_hold_meeting(cudaStream_t stream, const xp_ep_cuda_meet *meet) {
    meet_kernel<<<1, (unsigned)meet->n_ranks * 32, 0, stream>>>(*meet);
    return xp_cuda_check(cudaGetLastError(), "expert parallel meeting");
}
