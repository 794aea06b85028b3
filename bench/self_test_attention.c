/* Attention of a GPU, forward and backward, against the plain CPU code. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "device/plugin.h"
#include "self_test.h"
#include "self_test_parts.h"

#define S       128 /* tokens: what cuDNN takes without padding */
#define H       2   /* query heads over one head of keys and values */
#define C       64
#define SCRATCH ((size_t)16 << 20)

typedef struct attention_memory {
    _Alignas(256) float q[S * H * C];
    _Alignas(256) float k[S * C];
    _Alignas(256) float v[S * C];
    _Alignas(256) float dout[S * H * C];
    _Alignas(256) float lse[H * S];
    _Alignas(256) float out[S * H * C];
    _Alignas(256) float dq[S * H * C];
    _Alignas(256) float dk[S * C];
    _Alignas(256) float dv[S * C];
} attention_memory;

typedef struct attention_case {
    const xp_ops *ops;
    xp_stream *stream;
    attention_memory *m; /* of the stream's device */
    void *scratch;
} attention_case;

static xp_attention_args forward_args(const attention_case *c) {
    return (xp_attention_args){.n_rows = 1,
                               .seq_len = S,
                               .n_heads = H,
                               .n_kv_heads = 1,
                               .head_dim = C,
                               .scale = 1.0F / sqrtf((float)C),
                               .q = c->m->q,
                               .k = c->m->k,
                               .v = c->m->v,
                               .ldq = H * C,
                               .ldk = C,
                               .ldv = C,
                               .ldo = H * C,
                               .out = c->m->out,
                               .lse = c->m->lse,
                               .dtype = XP_BF16,
                               .scratch = c->scratch,
                               .scratch_bytes = c->scratch ? SCRATCH : 0};
}

static xp_status call(const attention_case *c) {
    const xp_attention_backward_args args = {.forward = forward_args(c),
                                             .dout = c->m->dout,
                                             .dq = c->m->dq,
                                             .dk = c->m->dk,
                                             .dv = c->m->dv,
                                             .lddq = H * C,
                                             .lddk = C,
                                             .lddv = C};
    XP_TRY(c->ops->attention_forward(c->stream, &args.forward));
    XP_TRY(c->ops->attention_backward(c->stream, &args));
    return xp_stream_sync(c->stream);
}

static xp_status compare(const char *device, const attention_memory *got,
                         const attention_memory *wanted) {
    const struct {
        const char *name;
        const float *got, *wanted;
        int64_t n;
    } parts[] = {{"out", got->out, wanted->out, S * H * C},
                 {"dq", got->dq, wanted->dq, S * H * C},
                 {"dk", got->dk, wanted->dk, S * C},
                 {"dv", got->dv, wanted->dv, S * C}};
    char what[96];
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        snprintf(what, sizeof what, "%s: attention (%s)", device, parts[i].name);
        XP_TRY(xp_self_test_compare(what, parts[i].got, parts[i].wanted, parts[i].n, XP_BF16));
    }
    return XP_OK;
}

static xp_status try_attention(const attention_case *fast, const attention_case *plain,
                               attention_memory *got) {
    memset(plain->m, 0, sizeof *plain->m);
    xp_self_test_fill(1, S * H * C, XP_BF16, plain->m->q);
    xp_self_test_fill(2, S * C, XP_BF16, plain->m->k);
    xp_self_test_fill(3, S * C, XP_BF16, plain->m->v);
    xp_self_test_fill(4, S * H * C, XP_BF16, plain->m->dout);
    XP_TRY(xp_copy(fast->stream, fast->m, plain->m, sizeof *got));
    XP_TRY(call(fast));
    XP_TRY(xp_copy(fast->stream, got, fast->m, sizeof *got));
    XP_TRY(xp_stream_sync(fast->stream));
    XP_TRY(call(plain));
    return compare(xp_device_name(xp_stream_device(fast->stream)), got, plain->m);
}

/* Who computes the forward pass: a kernel of our own on Hopper, elsewhere cuDNN's wherever it can. */
static void tell_who(xp_device *device, const attention_case *c, char *text, size_t n_text,
                     char *why_not, size_t n_why_not) {
    const xp_cuda_backend *cuda = NULL;
    const xp_attention_args args = forward_args(c);
    const char *why = NULL;
    const bool asks = xp_cuda_backend_get(&cuda) == XP_OK && cuda->attention_by_cudnn;
    const bool by_cudnn = asks && cuda->attention_by_cudnn(device, &args, &why);
    snprintf(text, n_text, "%s", by_cudnn ? "cuDNN" : "own kernels");
    snprintf(why_not, n_why_not, "%s", !by_cudnn && why ? why : "");
}

static xp_status try_on(const xp_self_test_device *gpu, const xp_self_test_device *host, char *text,
                        size_t n_text, char *why_not, size_t n_why_not) {
    attention_case fast = {.stream = gpu->stream},
                   plain = {.ops = xp_ops_reference(), .stream = host->stream};
    void *memory[4] = {NULL, NULL, NULL, NULL};
    XP_TRY(xp_ops_get(gpu->device, &fast.ops));
    xp_status status = xp_device_alloc(gpu->device, sizeof *fast.m, "self test", &memory[0]);
    if (status == XP_OK)
        status = xp_device_alloc(gpu->device, SCRATCH, "self test", &memory[1]);
    for (int i = 2; i < 4 && status == XP_OK; i++)
        status = xp_device_alloc(host->device, sizeof *fast.m, "self test", &memory[i]);
    if (status == XP_OK) {
        fast.m = memory[0];
        fast.scratch = memory[1];
        plain.m = memory[2];
        tell_who(gpu->device, &fast, text, n_text, why_not, n_why_not);
        status = try_attention(&fast, &plain, memory[3]);
    }
    for (int i = 0; i < 4; i++)
        xp_device_free(i < 2 ? gpu->device : host->device, memory[i]);
    return status;
}

xp_status xp_self_test_gpu_attention(int gpu, char *text, size_t n_text, char *why_not,
                                     size_t n_why_not) {
    xp_self_test_device device, host = {NULL};
    xp_status status = xp_self_test_open(XP_DEVICE_CUDA, gpu, &device);
    if (status == XP_OK)
        status = xp_self_test_open(XP_DEVICE_CPU, 0, &host);
    if (status == XP_OK)
        status = try_on(&device, &host, text, n_text, why_not, n_why_not);
    xp_self_test_close(&host);
    xp_self_test_close(&device);
    return status;
}
