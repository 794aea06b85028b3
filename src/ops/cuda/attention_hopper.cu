/*
 * Attention backward in bf16 on Hopper: five GEMMs a pair of tiles, deterministic, whole rows and
 * documents.
 *
 * An item is a block of 128 keys of one key/value head. A thread block takes items from a counter
 * and loops over the query tiles, 64 queries of one head each, that see its keys: dk and dv stay in
 * registers over all heads that share the keys. Warpgroup 0 loads through TMA and adds dq to fp32
 * sums in device memory, key blocks in ascending order; warpgroups 1 and 2 run the GEMMs. A kernel
 * before computes delta = dout . out, one after it rounds the sums of dq.
 *
 *   attention_hopper_tiles.cuh    order of the work, loads, the order in which dq is added
 *   attention_hopper_consume.cuh  GEMMs
 *   attention_hopper_sums.cuh     the kernels before and after
 */
#include "ops/cuda/attention_hopper_consume.cuh"
#include "ops/cuda/attention_hopper_sums.cuh"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/hopper_launch.h"
#include "ops/cuda/launch.h"

constexpr int STAGES = 3; /* of queries */

template <int C>
static __global__ void __launch_bounds__(N_THREADS, 1)
    attention_hopper_kernel(const __grid_constant__ xp_attention_hopper p,
                            const __grid_constant__ attention_maps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) uint8_t shared[];
    typedef attention_layout<C, STAGES> L;
    const uint32_t base = hopper_shared(shared);
    int32_t *items = (int32_t *)(shared + L::ITEMS_AT);
    if (threadIdx.x == 0) {
        for (int i = 0; i < L::N_BARRIERS; i++) {
            const bool by_copies = i < L::Q_EMPTY || (i >= L::DOUT_FULL && i < L::DOUT_EMPTY) ||
                                   i == L::K_FULL || i == L::V_FULL;
            const bool of_dq = i >= L::DQ_FULL && i < L::DQ_EMPTY;
            const bool single = by_copies || (i >= L::DQ_EMPTY && i < L::ITEM_EMPTY);
            mbarrier_init(L::barrier(base, i), single               ? 1
                                               : of_dq              ? GROUP / 32
                                               : i >= L::ITEM_EMPTY ? CONSUMER_WARPS + N_ADDERS
                                                                    : CONSUMER_WARPS);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < GROUP) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0)
            produce<C, STAGES>(p, maps, base, items);
        else if (threadIdx.x % 32 == 0)
            add_dq<C, STAGES>(p, base, items, (int)threadIdx.x / 32 - 1);
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        consume<C, STAGES>(p, base, items);
    }
#endif
}

/* [B, S, n_heads * C] in boxes of `box_rows` tokens and 64 columns. */
static xp_status map_of(const xp_attention_hopper *p, const void *data, int n_heads, int64_t ld,
                        int box_rows, CUtensorMap *map) {
    const xp_hopper_boxes boxes = {
        data, (int64_t)n_heads * p->a.head_dim, ld, p->a.seq_len, p->a.n_rows, box_rows, false};
    return xp_cuda_hopper_map(&boxes, map);
}

template <int C>
static xp_status launch(const xp_attention_hopper *p, int n_sms, cudaStream_t stream) {
    const int n_bytes = (int)attention_layout<C, STAGES>::N_BYTES;
    const auto kernel = attention_hopper_kernel<C>;
    attention_maps maps;
    XP_TRY(map_of(p, p->a.q, p->a.n_heads, p->a.ldq, TILE, &maps.q));
    XP_TRY(map_of(p, p->dout, p->a.n_heads, p->a.ldo, TILE, &maps.dout));
    XP_TRY(map_of(p, p->a.k, p->a.n_kv_heads, p->a.ldk, BLOCK, &maps.k));
    XP_TRY(map_of(p, p->a.v, p->a.n_kv_heads, p->a.ldv, BLOCK, &maps.v));
    XP_TRY(xp_cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, n_bytes),
        "attention_backward"));
    const dim3 tiles((unsigned)p->n_tiles, (unsigned)p->a.n_heads, (unsigned)p->a.n_rows);
    const unsigned n_blocks = (unsigned)(p->n_items < n_sms ? p->n_items : n_sms);
    attention_factors<C><<<tiles, SUM_THREADS, 0, stream>>>(*p);
    kernel<<<n_blocks, N_THREADS, n_bytes, stream>>>(*p, maps);
    attention_round_dq<C><<<tiles, SUM_THREADS, 0, stream>>>(*p);
    if (p->key_sums != nullptr) {
        const dim3 halves((unsigned)p->n_blocks * 2, (unsigned)p->a.n_kv_heads,
                          (unsigned)p->a.n_rows);
        attention_round_keys<C><<<halves, SUM_THREADS, 0, stream>>>(*p);
    }
    return xp_cuda_check(cudaGetLastError(), "attention_backward");
}

extern "C" xp_status xp_cuda_attention_hopper_backward(xp_stream *stream,
                                                       const xp_attention_backward_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    const int n_sms = xp_cuda_device_of(stream)->n_sms;
    xp_attention_hopper p = {};
    p.a = args->forward;
    p.dout = args->dout;
    p.dq = args->dq;
    p.dk = args->dk;
    p.dv = args->dv;
    p.lddq = args->lddq;
    p.lddk = args->lddk;
    p.lddv = args->lddv;
    (void)xp_attention_hopper_plan(&p, n_sms, p.a.scratch);
    return p.a.head_dim == 64 ? launch<64>(&p, n_sms, s) : launch<128>(&p, n_sms, s);
}
