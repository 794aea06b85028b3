/*
 * Attention forward in bf16 on Hopper: whole rows and documents (Shah et al., "FlashAttention-3",
 * 2024, for the order of softmax and GEMMs).
 *
 * An item is a tile of 128 queries of one head. Persistent CTAs take items, the longest first.
 * Warpgroup 0 is the producer: one thread loads queries, keys and values through TMA. Warpgroups 1
 * and 2 own 64 queries each and go through the key blocks that any of the 128 sees, from the
 * diagonal down, with an online softmax. Weights are rounded to bf16 for the GEMM with the values;
 * their sum, and so lse, is of the weights before rounding. No sum is split between CTAs, so
 * results do not depend on which CTA takes which item.
 *
 *   attention_forward_hopper.h     order of the items
 *   attention_forward_tiles.cuh    shared memory, barriers, producer
 *   attention_forward_consume.cuh  GEMMs and softmax
 */
#include "ops/cuda/attention_forward_consume.cuh"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/hopper_launch.h"
#include "ops/cuda/launch.h"

template <int C>
static __global__ void __launch_bounds__(N_THREADS, 1)
    attention_forward_kernel(const __grid_constant__ xp_attention_forward_hopper p,
                             const __grid_constant__ forward_maps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) uint8_t shared[];
    const uint32_t base = hopper_shared(shared);
    if (threadIdx.x == 0)
        init_barriers<forward_layout<C>>(base);
    __syncthreads();
    if (threadIdx.x < GROUP) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) {
            forward_producer<C> producer = {p, maps, base, {}, {}, {}, -1, 0, 0};
            producer.run();
        }
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        const int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / GROUP - 1, 0); /* uniform */
        forward_consumer<C> consumer = {p,
                                        maps,
                                        {base, group, threadIdx.x % 32 == 0},
                                        threadIdx.x % GROUP == 0,
                                        p.a.scale * 1.4426950408889634f};
        consumer.run();
    }
#endif
}

/* [B, S, n_heads * C] in boxes of `box_rows` tokens and 64 columns. */
static xp_status map_of(const xp_attention_args *a, const void *data, int n_heads, int64_t ld,
                        int box_rows, CUtensorMap *map) {
    const xp_hopper_boxes boxes = {
        data, (int64_t)n_heads * a->head_dim, ld, a->seq_len, a->n_rows, box_rows, false};
    return xp_cuda_hopper_map(&boxes, map);
}

template <int C>
static xp_status launch(const xp_attention_forward_hopper *p, int n_sms, cudaStream_t stream) {
    const xp_attention_args *a = &p->a;
    const int n_bytes = (int)forward_layout<C>::N_BYTES;
    const auto kernel = attention_forward_kernel<C>;
    forward_maps maps;
    XP_TRY(map_of(a, a->q, a->n_heads, a->ldq, BLOCK, &maps.q));
    XP_TRY(map_of(a, a->k, a->n_kv_heads, a->ldk, BLOCK, &maps.k));
    XP_TRY(map_of(a, a->v, a->n_kv_heads, a->ldv, BLOCK, &maps.v));
    XP_TRY(map_of(a, a->out, a->n_heads, a->ldo, TILE, &maps.out));
    XP_TRY(xp_cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, n_bytes),
        "attention_forward"));
    kernel<<<(unsigned)(p->n_items < n_sms ? p->n_items : n_sms), N_THREADS, n_bytes, stream>>>(
        *p, maps);
    return xp_cuda_check(cudaGetLastError(), "attention_forward");
}

extern "C" xp_status xp_cuda_attention_hopper_forward(xp_stream *stream,
                                                      const xp_attention_args *args) {
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    const xp_cuda_device *device = xp_cuda_device_of(stream);
    xp_attention_forward_hopper p = {};
    p.a = *args;
    if (!xp_attention_forward_plan(&p, device->l2_bytes))
        return xp_error(XP_EINVAL, "attention_forward: too many tiles of queries");
    XP_TRY(xp_cuda_tile_counter(stream, &p.counter));
    return p.a.head_dim == 64 ? launch<64>(&p, device->n_sms, s)
                              : launch<128>(&p, device->n_sms, s);
}
