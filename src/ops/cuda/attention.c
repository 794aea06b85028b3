/*
 * Which attention runs. Our Hopper kernels where they can (sm_90a, bf16, heads of 64 or 128
 * elements). Else cuDNN where it can (bf16, whole rows, lengths that fill its tiles), else our
 * mma.sync kernels (bf16; documents, any length), else the plain ones. The choice depends on the
 * arguments and the device only, never on the moment, so that a run repeats itself.
 *
 * cuDNN does not run documents: before 9.25 its deterministic backward on Hopper keeps one number
 * per query-key pair of every sequence it may be given, and a plan for any layout would have to
 * assume many sequences as long as a row: tens of GiB.
 */
#include "ops/cuda/attention_forward_hopper.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/cudnn_sdpa.h"
#include "ops/cuda/hopper_launch.h"
#include "ops/cuda/launch.h"

/* Limit of the memory for query-key pairs in a deterministic backward: more rows run in pieces. */
#define MOST_PAIR_BYTES ((int64_t)1 << 30)

static bool is_16_byte(int64_t ld) {
    return ld * 2 % 16 == 0;
}

/* cuDNN wants padding masks for other lengths. */
static bool suits_cudnn(const xp_cuda_device *device, const xp_attention_args *a) {
    return !device->without_cudnn && a->dtype == XP_BF16 && a->doc_start == NULL &&
           a->head_dim % 8 == 0 && a->head_dim <= 128 && a->seq_len % 128 == 0 && a->seq_len > 0 &&
           a->n_rows > 0 && is_16_byte(a->ldq) && is_16_byte(a->ldk) && is_16_byte(a->ldv) &&
           is_16_byte(a->ldo);
}

static bool suits_mma(const xp_attention_args *a) {
    return a->dtype == XP_BF16 && a->head_dim % 8 == 0 && a->head_dim <= 128 && a->seq_len > 0 &&
           a->seq_len <= INT32_MAX / 2 && a->n_rows > 0 && a->n_rows <= UINT16_MAX &&
           a->n_heads <= UINT16_MAX && is_16_byte(a->ldq) && is_16_byte(a->ldk) &&
           is_16_byte(a->ldv) && is_16_byte(a->ldo);
}

static size_t sums_bytes(const xp_attention_args *a) {
    return xp_attention_sums_bytes(a->n_rows, a->n_heads, a->seq_len);
}

static bool all_aligned(const void *const *data, int n) {
    bool aligned = true;
    for (int i = 0; i < n; i++)
        aligned = aligned && xp_is_aligned(data[i]);
    return aligned;
}

static bool forward_suits_mma(const xp_attention_args *a) {
    const void *const data[] = {a->q, a->k, a->v, a->out};
    return suits_mma(a) && all_aligned(data, 4);
}

static bool backward_suits_mma(const xp_attention_backward_args *args) {
    const void *const data[] = {args->dout, args->dq, args->dk, args->dv};
    return forward_suits_mma(&args->forward) && all_aligned(data, 4) &&
           args->forward.scratch_bytes >= sums_bytes(&args->forward) && is_16_byte(args->lddq) &&
           is_16_byte(args->lddk) && is_16_byte(args->lddv);
}

/* For sizes and strides alone: the pointers come with the call. */
static bool suits_hopper(const xp_cuda_device *device, const xp_attention_args *a) {
    return device->wgmma && suits_mma(a) && (a->head_dim == 64 || a->head_dim == 128) &&
           xp_cuda_hopper_is_built();
}

/* For sizes and strides alone, likewise. The smallest calls too: its tiles are as large as those of the
 * other kernels. */
static bool forward_suits_hopper(const xp_cuda_device *device, const xp_attention_args *a) {
    xp_attention_forward_hopper p = {.a = *a};
    return device->attention_forward && suits_hopper(device, a) && a->scale > 0.0f &&
           xp_attention_forward_plan(&p, device->l2_bytes);
}

static size_t hopper_bytes(const xp_cuda_device *device, const xp_attention_args *a) {
    xp_attention_hopper p = {.a = *a};
    return xp_attention_hopper_plan(&p, device->n_sms, NULL);
}

static bool backward_suits_hopper(const xp_cuda_device *device,
                                  const xp_attention_backward_args *args) {
    return suits_hopper(device, &args->forward) && backward_suits_mma(args) &&
           args->forward.scratch_bytes >= hopper_bytes(device, &args->forward);
}

static xp_sdpa_shape shape_of(const xp_attention_args *a) {
    return (xp_sdpa_shape){.n_rows = a->n_rows,
                           .seq_len = a->seq_len,
                           .n_heads = a->n_heads,
                           .n_kv_heads = a->n_kv_heads,
                           .head_dim = a->head_dim,
                           .ldq = a->ldq,
                           .ldk = a->ldk,
                           .ldv = a->ldv,
                           .ldo = a->ldo};
}

/* The largest divisor of n_rows whose pairs fit. */
static int64_t rows_a_piece(const xp_attention_args *a) {
    const int64_t pair_bytes = 2 * a->n_heads * a->seq_len * a->seq_len;
    int64_t rows = a->n_rows;
    while (rows > 1 && (a->n_rows % rows != 0 || rows * pair_bytes > MOST_PAIR_BYTES))
        rows--;
    return rows;
}

static xp_sdpa_shape backward_shape(const xp_cuda_device *device, const xp_attention_args *a,
                                    int64_t lddq, int64_t lddk, int64_t lddv) {
    xp_sdpa_shape s = shape_of(a);
    s.backward = 1;
    s.deterministic = device->without_determinism ? 0 : 1;
    if (s.deterministic)
        s.n_rows = rows_a_piece(a);
    s.lddq = lddq;
    s.lddk = lddk;
    s.lddv = lddv;
    return s;
}

bool xp_cuda_attention_by_cudnn(xp_device *device, const void *args, const char **why) {
    xp_cuda_device *cuda = (xp_cuda_device *)device;
    const xp_attention_args *a = args;
    const xp_sdpa_shape shape = shape_of(a);
    *why = NULL;
    if (forward_suits_hopper(cuda, a))
        return false;
    *why = "it does not serve this shape, or is left out of this device";
    if (!suits_cudnn(cuda, a) || cudaSetDevice(cuda->index) != cudaSuccess)
        return false;
    const xp_sdpa_plan *plan = xp_sdpa_plan_get(cuda, &shape, why);
    if (plan == NULL)
        return false;
    *why = "it needs more scratch";
    return a->scratch_bytes >= xp_sdpa_plan_scratch(plan);
}

xp_status xp_cuda_attention_forward(xp_stream *stream, const xp_attention_args *a) {
    xp_cuda_device *device = (xp_cuda_device *)stream->device;
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (forward_suits_hopper(device, a) && forward_suits_mma(a))
        return xp_cuda_attention_hopper_forward(stream, a);
    const char *why;
    const xp_sdpa_shape shape = shape_of(a);
    xp_sdpa_plan *plan = suits_cudnn(device, a) ? xp_sdpa_plan_get(device, &shape, &why) : NULL;
    if (plan != NULL && a->scratch_bytes >= xp_sdpa_plan_scratch(plan))
        return xp_sdpa_plan_forward(plan, s, a);
    return forward_suits_mma(a) ? xp_cuda_attention_mma_forward(stream, a)
                                : xp_cuda_attention_plain_forward(stream, a);
}

static void *advance(const void *data, int64_t n_elements) {
    return (char *)data + 2 * n_elements;
}

/* The call's rows [first, first + n_rows of the plan). */
static xp_attention_backward_args piece_of(const xp_attention_backward_args *args, int64_t first) {
    xp_attention_backward_args piece = *args;
    const int64_t tokens = first * args->forward.seq_len;
    xp_attention_args *f = &piece.forward;
    f->q = advance(f->q, tokens * f->ldq);
    f->k = advance(f->k, tokens * f->ldk);
    f->v = advance(f->v, tokens * f->ldv);
    f->out = advance(f->out, tokens * f->ldo);
    f->lse += tokens * f->n_heads;
    piece.dout = advance(piece.dout, tokens * f->ldo);
    piece.dq = advance(piece.dq, tokens * piece.lddq);
    piece.dk = advance(piece.dk, tokens * piece.lddk);
    piece.dv = advance(piece.dv, tokens * piece.lddv);
    return piece;
}

xp_status xp_cuda_attention_backward(xp_stream *stream, const xp_attention_backward_args *args) {
    xp_cuda_device *device = (xp_cuda_device *)stream->device;
    const xp_attention_args *a = &args->forward;
    cudaStream_t s;
    XP_TRY(xp_cuda_enter(stream, &s));
    if (backward_suits_hopper(device, args))
        return xp_cuda_attention_hopper_backward(stream, args);
    const char *why;
    const xp_sdpa_shape shape = backward_shape(device, a, args->lddq, args->lddk, args->lddv);
    const bool suits = suits_cudnn(device, a) && a->scratch_bytes > 0 && is_16_byte(args->lddq) &&
                       is_16_byte(args->lddk) && is_16_byte(args->lddv);
    xp_sdpa_plan *plan = suits ? xp_sdpa_plan_get(device, &shape, &why) : NULL;
    if (plan == NULL || a->scratch_bytes < xp_sdpa_plan_scratch(plan))
        return backward_suits_mma(args) ? xp_cuda_attention_mma_backward(stream, args)
                                        : xp_cuda_attention_plain_backward(stream, args);
    for (int64_t first = 0; first < a->n_rows; first += shape.n_rows) {
        const xp_attention_backward_args piece = piece_of(args, first);
        XP_TRY(xp_sdpa_plan_backward(plan, s, &piece));
    }
    return XP_OK;
}

/* What a machine without a GPU predicts, unless this one needs more. */
static size_t at_least_predicted(const xp_attention_args *a, bool backward, size_t needed) {
    const size_t predicted = xp_attention_scratch_gpu(a, backward);
    return needed > predicted ? needed : predicted;
}

size_t xp_cuda_attention_scratch(const xp_device *device, const xp_attention_args *a,
                                 bool backward) {
    xp_cuda_device *cuda = (xp_cuda_device *)device;
    const char *why;
    const size_t own = backward && suits_mma(a) ? sums_bytes(a) : 0;
    if (backward && suits_hopper(cuda, a))
        return at_least_predicted(a, backward, hopper_bytes(cuda, a));
    if (!backward && forward_suits_hopper(cuda, a))
        return 0;
    if (!suits_cudnn(cuda, a) || cudaSetDevice(cuda->index) != cudaSuccess)
        return own;
    /* gradients usually have the leading dimensions of their tensors: that plan will be used */
    const xp_sdpa_shape shape =
        backward ? backward_shape(cuda, a, a->ldq, a->ldk, a->ldv) : shape_of(a);
    const xp_sdpa_plan *plan = xp_sdpa_plan_get(cuda, &shape, &why);
    return plan == NULL ? own : at_least_predicted(a, backward, xp_sdpa_plan_scratch(plan));
}
