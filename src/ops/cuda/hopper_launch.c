#include "ops/cuda/hopper_launch.h"

#include <pthread.h>
#include "ops/cuda/launch.h"

bool xp_cuda_hopper_fits(const xp_cuda_device *device, const xp_tile_args *p) {
    const int64_t inner = p->rows_are_m ? p->k : p->m;
    return device->wgmma && !p->ab_f32 && p->offsets != NULL && p->alpha == 1.0F &&
           p->n_experts <= XP_HOPPER_MAX_EXPERTS && p->lda % 8 == 0 && p->ldb % 8 == 0 &&
           p->n % 8 == 0 && inner % 8 == 0 && inner > 0 && xp_is_aligned(p->a) &&
           xp_is_aligned(p->b) && xp_is_aligned(p->c);
}

int xp_cuda_hopper_ctas(const xp_cuda_device *device, const xp_tile_args *p, int cluster_ctas) {
    const int n_clusters = (device->n_sms - p->spare_sms) / cluster_ctas;
    return (n_clusters > 1 ? n_clusters : 1) * cluster_ctas;
}

/* A driver function, found through the runtime: nothing links to the driver's library. Looked up once a
 * process, constant afterwards; NULL: the driver has none. */
static pthread_once_t encode_once = PTHREAD_ONCE_INIT;
static __typeof__(cuTensorMapEncodeTiled) *encode;

static void find_encode(void) {
    enum cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000,
                                         cudaEnableDefault, &found) != cudaSuccess) {
        cudaGetLastError();
        encode = NULL;
    }
}

xp_status xp_cuda_hopper_map(const xp_hopper_boxes *b, CUtensorMap *map) {
    pthread_once(&encode_once, find_encode);
    if (encode == NULL)
        return xp_error(XP_ENOTSUP, "this driver has no cuTensorMapEncodeTiled; install one for "
                                    "CUDA 12 or newer, or leave out the capability wgmma");
    const cuuint64_t size[3] = {(cuuint64_t)b->columns, (cuuint64_t)b->rows, (cuuint64_t)b->planes};
    const cuuint64_t bytes = b->f32 ? 4 : 2;
    const cuuint64_t stride[2] = {(cuuint64_t)b->ld * bytes, (cuuint64_t)(b->ld * b->rows) * bytes};
    const cuuint32_t box[3] = {(cuuint32_t)(128 / bytes), (cuuint32_t)b->box_rows, 1},
                     step[3] = {1, 1, 1};
    const CUresult result =
        encode(map, b->f32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3,
               (void *)b->data, size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        return xp_error(XP_EDEVICE, "grouped GEMM: TMA refuses %lld x %lld x %lld (%d)",
                        (long long)b->planes, (long long)b->rows, (long long)b->columns,
                        (int)result);
    return XP_OK;
}
