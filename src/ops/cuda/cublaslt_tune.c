/* Which of cuBLASLt's algorithms is the fastest for a GEMM shape: timed on the operands of its first call. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "ops/cuda/cublaslt.h"

#define N_ROUNDS   3    /* of all candidates in turns; the best round counts */
#define ROUND_MS   2.0F /* of a candidate, about */
#define MOST_RUNS  50
#define LEAST_GAIN 0.02F /* less is noise: the library's first choice stays */

typedef struct timing {
    const xp_cublaslt *lt;
    const xp_cublaslt_plan *plan;
    const xp_gemm_args *args;
    void *workspace;
    cudaStream_t stream;
    cudaEvent_t begin, end;
    int n;
    cublasLtMatmulHeuristicResult_t found[XP_GEMM_CANDIDATES];
    float ms[XP_GEMM_CANDIDATES]; /* of a run; INFINITY: the library refuses it */
} timing;

/* What is added to keeps its value: a factor this small disappears in every sum but that of zeros. */
static float alpha_of(const timing *t) {
    return t->args->acc ? 1e-30F : t->args->alpha;
}

static xp_status run_candidate(timing *t, int i, int n_runs, float *ms) {
    XP_TRY(xp_cuda_check(cudaEventRecord(t->begin, t->stream), "gemm"));
    for (int run = 0; run < n_runs; run++)
        if (xp_cublaslt_run(t->lt, t->plan, t->args, alpha_of(t), &t->found[i].algo, t->workspace,
                            t->found[i].workspaceSize, t->stream) != CUBLAS_STATUS_SUCCESS) {
            *ms = INFINITY;
            return XP_OK;
        }
    XP_TRY(xp_cuda_check(cudaEventRecord(t->end, t->stream), "gemm"));
    XP_TRY(xp_cuda_check(cudaEventSynchronize(t->end), "gemm"));
    XP_TRY(xp_cuda_check(cudaEventElapsedTime(ms, t->begin, t->end), "gemm"));
    *ms /= (float)n_runs;
    return XP_OK;
}

/* Candidates in turns, each at least once before it is timed. */
static xp_status time_all(timing *t) {
    int n_runs[XP_GEMM_CANDIDATES];
    for (int i = 0; i < t->n; i++) {
        float ms = INFINITY;
        t->ms[i] = INFINITY;
        if (t->found[i].state == CUBLAS_STATUS_SUCCESS)
            XP_TRY(run_candidate(t, i, 1, &ms));
        if (ms < INFINITY) /* the first run loads the kernel */
            XP_TRY(run_candidate(t, i, 1, &ms));
        const float runs = ms < INFINITY ? ROUND_MS / ms : 0;
        n_runs[i] = !(ms < INFINITY) ? 0 : runs < 1 ? 1 : runs > MOST_RUNS ? MOST_RUNS : (int)runs;
    }
    for (int round = 0; round < N_ROUNDS; round++)
        for (int i = 0; i < t->n; i++) {
            float ms = INFINITY;
            if (n_runs[i] > 0)
                XP_TRY(run_candidate(t, i, n_runs[i], &ms));
            t->ms[i] = ms < t->ms[i] ? ms : t->ms[i];
        }
    return XP_OK;
}

static void record(xp_cublaslt *lt, const timing *t, int best) {
    const xp_gemm_args *args = t->args;
    if (lt->n_choices == XP_GEMM_CHOICES_MAX)
        return;
    lt->choices[lt->n_choices++] = (xp_gemm_choice){.m = args->m,
                                                    .n = args->n,
                                                    .k = args->k,
                                                    .trans_a = args->trans_a,
                                                    .trans_b = args->trans_b,
                                                    .ab_dtype = args->ab_dtype,
                                                    .c_dtype = args->c_dtype,
                                                    .acc = args->acc,
                                                    .index = best,
                                                    .first_s = (double)t->ms[0] / 1e3,
                                                    .s = (double)t->ms[best] / 1e3};
}

static xp_status time_and_keep(xp_cublaslt *lt, xp_cublaslt_plan *plan, timing *t) {
    XP_TRY(time_all(t));
    int best = 0;
    for (int i = 1; i < t->n; i++)
        if (t->ms[i] < t->ms[best])
            best = i;
    if (!(t->ms[best] < (1 - LEAST_GAIN) * t->ms[0]))
        best = 0;
    if (t->n > 0 && best > 0) {
        plan->algo = t->found[best].algo;
        plan->workspace_bytes = t->found[best].workspaceSize;
    }
    if (t->n > 0)
        record(lt, t, best);
    return XP_OK;
}

xp_status xp_cublaslt_time(xp_cublaslt *lt, xp_cublaslt_plan *plan, const xp_gemm_args *args,
                           void *workspace, cudaStream_t stream) {
    timing t = {.lt = lt, .plan = plan, .args = args, .workspace = workspace, .stream = stream};
    plan->timed = true;
    XP_TRY(xp_cublaslt_candidates(lt, plan, XP_GEMM_CANDIDATES, t.found, &t.n));
    XP_TRY(xp_cuda_check(cudaEventCreate(&t.begin), "gemm"));
    xp_status status = xp_cuda_check(cudaEventCreate(&t.end), "gemm");
    if (status == XP_OK) {
        status = time_and_keep(lt, plan, &t);
        (void)cudaEventDestroy(t.end);
    }
    (void)cudaEventDestroy(t.begin);
    return status;
}

/* ---- for the core ------------------------------------------------------------------------ */

static xp_status make_room(xp_device *device, xp_cublaslt **lt) {
    XP_TRY(xp_cublaslt_get((xp_cuda_device *)device, lt));
    if (!(*lt)->choices)
        (*lt)->choices = calloc(XP_GEMM_CHOICES_MAX, sizeof *(*lt)->choices);
    return (*lt)->choices ? XP_OK : xp_error(XP_ENOMEM, "cuBLASLt: out of memory");
}

static xp_status choose(xp_device *device, const xp_gemm_choice *choices, int n) {
    xp_cublaslt *lt;
    XP_TRY(make_room(device, &lt));
    if (n > XP_GEMM_CHOICES_MAX)
        return xp_error(XP_EINVAL, "gemm: %d algorithms; at most %d are kept", n,
                        XP_GEMM_CHOICES_MAX);
    if (n > 0)
        memcpy(lt->choices, choices, (size_t)n * sizeof *choices);
    lt->n_choices = n;
    lt->tuning = false;
    return xp_cublaslt_choose_again(lt);
}

static xp_status tune(xp_device *device) {
    xp_cublaslt *lt;
    XP_TRY(make_room(device, &lt));
    lt->n_choices = 0;
    lt->tuning = true;
    return XP_OK;
}

static int tuned(xp_device *device, xp_gemm_choice *choices, int capacity) {
    xp_cublaslt *lt;
    if (make_room(device, &lt) != XP_OK || !lt->tuning)
        return 0;
    const int n = lt->n_choices < capacity ? lt->n_choices : capacity;
    if (n > 0)
        memcpy(choices, lt->choices, (size_t)n * sizeof *choices);
    return n;
}

const xp_gemm_choice_calls xp_cublaslt_choices = {.choose = choose, .tune = tune, .tuned = tuned};
