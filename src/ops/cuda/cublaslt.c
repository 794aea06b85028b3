#include "ops/cuda/cublaslt.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* Per stream. NVIDIA's advice for Hopper is 32 MiB. */
#define WORKSPACE_BYTES XP_OPS_BLAS_WORKSPACE_BYTES

xp_status xp_cublaslt_check(const xp_cublaslt *lt, cublasStatus_t result, const char *doing) {
    if (result == CUBLAS_STATUS_SUCCESS)
        return XP_OK;
    return xp_error(XP_EDEVICE, "%s: cuBLASLt says %s", doing, lt->api.status_string(result));
}

/* ---- the library ---- */

typedef struct symbol {
    const char *name;
    void **at;
} symbol;

static xp_status find_symbols(void *library, xp_cublaslt_api *api) {
    const symbol symbols[] = {
        {"cublasLtCreate", (void **)&api->create},
        {"cublasLtDestroy", (void **)&api->destroy},
        {"cublasLtGetStatusString", (void **)&api->status_string},
        {"cublasLtMatmul", (void **)&api->matmul},
        {"cublasLtMatmulAlgoGetHeuristic", (void **)&api->get_heuristic},
        {"cublasLtMatmulDescCreate", (void **)&api->desc_create},
        {"cublasLtMatmulDescDestroy", (void **)&api->desc_destroy},
        {"cublasLtMatmulDescSetAttribute", (void **)&api->desc_set},
        {"cublasLtMatrixLayoutCreate", (void **)&api->layout_create},
        {"cublasLtMatrixLayoutDestroy", (void **)&api->layout_destroy},
        {"cublasLtMatmulPreferenceCreate", (void **)&api->preference_create},
        {"cublasLtMatmulPreferenceDestroy", (void **)&api->preference_destroy},
        {"cublasLtMatmulPreferenceSetAttribute", (void **)&api->preference_set},
    };
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        *symbols[i].at = dlsym(library, symbols[i].name);
        if (*symbols[i].at == NULL)
            return xp_error(XP_ENOTSUP, "cuBLASLt has no %s; it must be of CUDA 12 or 13",
                            symbols[i].name);
    }
    return XP_OK;
}

static void release_plan(const xp_cublaslt *lt, xp_cublaslt_plan *plan) {
    if (plan->desc != NULL)
        lt->api.desc_destroy(plan->desc);
    const cublasLtMatrixLayout_t layouts[] = {plan->a, plan->b, plan->c};
    for (int i = 0; i < 3; i++)
        if (layouts[i] != NULL)
            lt->api.layout_destroy(layouts[i]);
}

/* The workspace is freed with the device's other memory. */
static void destroy(void *state) {
    xp_cublaslt *lt = state;
    for (int i = 0; i < lt->n_plans; i++)
        release_plan(lt, &lt->plans[i]);
    free(lt->plans);
    free(lt->choices);
    if (lt->handle != NULL)
        lt->api.destroy(lt->handle);
    free(lt);
}

static xp_status fill(xp_cuda_device *device, void *library, xp_cublaslt *lt) {
    XP_TRY(find_symbols(library, &lt->api));
    XP_TRY(xp_cuda_check(cudaSetDevice(device->index), device->base.name));
    XP_TRY(xp_cublaslt_check(lt, lt->api.create(&lt->handle), "cublasLtCreate"));
    return xp_device_alloc(&device->base, (size_t)WORKSPACE_BYTES * XP_CUBLASLT_STREAMS,
                           "workspace", &lt->workspace);
}

xp_status xp_cublaslt_get(xp_cuda_device *device, xp_cublaslt **lt) {
    xp_cuda_library_state *slot = xp_cuda_library_slot(device, XP_CUBLASLT);
    if (slot == NULL)
        return XP_ENOMEM;
    if (slot->state == NULL) {
        const char *why;
        void *library = xp_cuda_library_open(XP_CUBLASLT, &why);
        if (library == NULL)
            return xp_error(XP_ENOTSUP, "%s", why);
        xp_cublaslt *made = calloc(1, sizeof *made);
        if (made == NULL)
            return xp_error(XP_ENOMEM, "cuBLASLt: out of memory");
        xp_status status = fill(device, library, made);
        if (status != XP_OK) {
            destroy(made);
            return status;
        }
        slot->state = made;
        slot->destroy = destroy;
    }
    *lt = slot->state;
    return XP_OK;
}

void *xp_cublaslt_workspace(xp_cublaslt *lt, cudaStream_t stream, size_t *n_bytes) {
    int i = 0;
    while (i < lt->n_streams && lt->streams[i] != stream)
        i++;
    *n_bytes = 0;
    if (i == XP_CUBLASLT_STREAMS)
        return NULL;
    if (i == lt->n_streams)
        lt->streams[lt->n_streams++] = stream;
    *n_bytes = WORKSPACE_BYTES;
    return (char *)lt->workspace + (size_t)i * WORKSPACE_BYTES;
}

/* ---- choosing ---- */

static int32_t alignment_of(const void *data) {
    const uintptr_t at = (uintptr_t)data | 256;
    return (int32_t)(at & (~at + 1));
}

static xp_cublaslt_key make_key(const xp_gemm_args *a, size_t workspace_bytes) {
    xp_cublaslt_key key;
    memset(&key, 0, sizeof key);
    key.m = a->m;
    key.n = a->n;
    key.k = a->k;
    key.lda = a->lda;
    key.ldb = a->ldb;
    key.ldc = a->ldc;
    key.trans_a = a->trans_a;
    key.trans_b = a->trans_b;
    key.ab_dtype = (int32_t)a->ab_dtype;
    key.c_dtype = (int32_t)a->c_dtype;
    key.acc = a->acc;
    key.align_a = alignment_of(a->a);
    key.align_b = alignment_of(a->b);
    key.align_c = alignment_of(a->c);
    key.workspace_bytes = (int64_t)workspace_bytes;
    return key;
}

static cudaDataType_t type_of(xp_dtype dtype) {
    return dtype == XP_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/*
 * The library is column-major: our row-major c[m, n] is its c^T [n, m], so its first operand is
 * our b and its second our a. A row-major [rows, columns] is its [columns, rows] with the same
 * leading dimension, and a transposed operand stays transposed.
 */
static xp_status describe(const xp_cublaslt *lt, const xp_cublaslt_key *key,
                          xp_cublaslt_plan *plan) {
    const xp_cublaslt_api *api = &lt->api;
    const cudaDataType_t ab = type_of((xp_dtype)key->ab_dtype), c = type_of((xp_dtype)key->c_dtype);
    /* 32F without "FAST": fp32 GEMMs stay fp32. */
    XP_TRY(xp_cublaslt_check(lt, api->desc_create(&plan->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                             "cublasLtMatmulDescCreate"));
    const cublasOperation_t first = key->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                            second = key->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    XP_TRY(xp_cublaslt_check(
        lt, api->desc_set(plan->desc, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first),
        "cublasLtMatmulDescSetAttribute"));
    XP_TRY(xp_cublaslt_check(
        lt, api->desc_set(plan->desc, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second),
        "cublasLtMatmulDescSetAttribute"));
    const uint64_t a_rows = (uint64_t)(key->trans_b ? key->k : key->n),
                   a_columns = (uint64_t)(key->trans_b ? key->n : key->k),
                   b_rows = (uint64_t)(key->trans_a ? key->m : key->k),
                   b_columns = (uint64_t)(key->trans_a ? key->k : key->m);
    XP_TRY(xp_cublaslt_check(lt, api->layout_create(&plan->a, ab, a_rows, a_columns, key->ldb),
                             "cublasLtMatrixLayoutCreate"));
    XP_TRY(xp_cublaslt_check(lt, api->layout_create(&plan->b, ab, b_rows, b_columns, key->lda),
                             "cublasLtMatrixLayoutCreate"));
    return xp_cublaslt_check(
        lt, api->layout_create(&plan->c, c, (uint64_t)key->n, (uint64_t)key->m, key->ldc),
        "cublasLtMatrixLayoutCreate");
}

/* Deterministic: of the split-k schemes only those that reduce through the workspace in order. */
static xp_status set_preferences(const xp_cublaslt *lt, const xp_cublaslt_key *key,
                                 cublasLtMatmulPreference_t wish) {
    const uint64_t workspace = (uint64_t)key->workspace_bytes;
    const uint32_t reductions =
        (uint32_t)CUBLASLT_REDUCTION_SCHEME_NONE | (uint32_t)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint32_t align_a = (uint32_t)key->align_b, align_b = (uint32_t)key->align_a,
                   align_c = (uint32_t)key->align_c;
    const struct {
        cublasLtMatmulPreferenceAttributes_t what;
        const void *value;
        size_t n_bytes;
    } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align_a, sizeof align_a},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align_b, sizeof align_b},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align_c, sizeof align_c},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align_c, sizeof align_c},
    };
    for (size_t i = 0; i < sizeof wishes / sizeof wishes[0]; i++)
        XP_TRY(xp_cublaslt_check(
            lt, lt->api.preference_set(wish, wishes[i].what, wishes[i].value, wishes[i].n_bytes),
            "cublasLtMatmulPreferenceSetAttribute"));
    return XP_OK;
}

xp_status xp_cublaslt_candidates(const xp_cublaslt *lt, const xp_cublaslt_plan *plan, int most,
                                 cublasLtMatmulHeuristicResult_t found[XP_GEMM_CANDIDATES],
                                 int *n) {
    cublasLtMatmulPreference_t wish = NULL;
    *n = 0;
    XP_TRY(
        xp_cublaslt_check(lt, lt->api.preference_create(&wish), "cublasLtMatmulPreferenceCreate"));
    xp_status status = set_preferences(lt, &plan->key, wish);
    if (status == XP_OK) {
        const cublasStatus_t result = lt->api.get_heuristic(
            lt->handle, plan->desc, plan->a, plan->b, plan->c, plan->c, wish, most, found, n);
        if (result != CUBLAS_STATUS_SUCCESS)
            *n = 0;
        if (result != CUBLAS_STATUS_SUCCESS && result != CUBLAS_STATUS_NOT_SUPPORTED &&
            result != CUBLAS_STATUS_INVALID_VALUE)
            status = xp_cublaslt_check(lt, result, "cublasLtMatmulAlgoGetHeuristic");
    }
    lt->api.preference_destroy(wish);
    return status;
}

static bool is_of(const xp_gemm_choice *c, const xp_cublaslt_key *key) {
    return c->m == key->m && c->n == key->n && c->k == key->k && c->trans_a == key->trans_a &&
           c->trans_b == key->trans_b && (int32_t)c->ab_dtype == key->ab_dtype &&
           (int32_t)c->c_dtype == key->c_dtype && c->acc == key->acc;
}

/* The algorithm that the run's choices name, else the library's first. */
static xp_status choose(xp_cublaslt *lt, xp_cublaslt_plan *plan) {
    cublasLtMatmulHeuristicResult_t found[XP_GEMM_CANDIDATES];
    int index = 0, n = 0;
    for (int i = 0; i < lt->n_choices; i++)
        if (is_of(&lt->choices[i], &plan->key))
            index = lt->choices[i].index;
    XP_TRY(xp_cublaslt_candidates(lt, plan, index > 0 ? XP_GEMM_CANDIDATES : 1, found, &n));
    if (index >= n || found[index].state != CUBLAS_STATUS_SUCCESS)
        index = 0;
    plan->usable = n > 0 && found[index].state == CUBLAS_STATUS_SUCCESS;
    if (plan->usable) {
        plan->algo = found[index].algo;
        plan->workspace_bytes = found[index].workspaceSize;
    }
    return XP_OK;
}

xp_status xp_cublaslt_choose_again(xp_cublaslt *lt) {
    for (int i = 0; i < lt->n_plans; i++)
        XP_TRY(choose(lt, &lt->plans[i]));
    return XP_OK;
}

cublasStatus_t xp_cublaslt_run(const xp_cublaslt *lt, const xp_cublaslt_plan *plan,
                               const xp_gemm_args *args, float alpha,
                               const cublasLtMatmulAlgo_t *algo, void *workspace,
                               size_t workspace_bytes, cudaStream_t stream) {
    const float beta = args->acc ? 1.0F : 0.0F;
    return lt->api.matmul(lt->handle, plan->desc, &alpha, args->b, plan->a, args->a, plan->b, &beta,
                          args->c, plan->c, args->c, plan->c, algo, workspace, workspace_bytes,
                          stream);
}

static xp_status make_room(xp_cublaslt *lt) {
    if (lt->n_plans < lt->capacity)
        return XP_OK;
    const int capacity = lt->capacity == 0 ? 64 : 2 * lt->capacity;
    xp_cublaslt_plan *plans = realloc(lt->plans, (size_t)capacity * sizeof *plans);
    if (plans == NULL)
        return xp_error(XP_ENOMEM, "cuBLASLt: out of memory");
    lt->plans = plans;
    lt->capacity = capacity;
    return XP_OK;
}

xp_status xp_cublaslt_plan_get(xp_cublaslt *lt, const xp_gemm_args *args, size_t workspace_bytes,
                               xp_cublaslt_plan **plan) {
    const xp_cublaslt_key key = make_key(args, workspace_bytes);
    for (int i = 0; i < lt->n_plans; i++)
        if (memcmp(&lt->plans[i].key, &key, sizeof key) == 0) {
            *plan = &lt->plans[i];
            return XP_OK;
        }
    XP_TRY(make_room(lt));
    xp_cublaslt_plan made;
    memset(&made, 0, sizeof made);
    made.key = key;
    xp_status status = describe(lt, &key, &made);
    if (status == XP_OK)
        status = choose(lt, &made);
    if (status != XP_OK) {
        release_plan(lt, &made);
        return status;
    }
    lt->plans[lt->n_plans] = made;
    *plan = &lt->plans[lt->n_plans++];
    return XP_OK;
}
