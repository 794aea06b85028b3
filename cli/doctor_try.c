/* What the doctor's children try: each GPU computes; ranks reach each other, and their GPUs. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cli.h"
#include "device/plugin.h"
#include "doctor_child.h"
#include "self_test.h"

#define RANK_S 20 /* of a wait for other ranks */

/* ---- each GPU ---------------------------------------------------------------------------- */

typedef struct gpu {
    pthread_t thread;
    bool has_thread, is_attention;
    int index;
    xp_status status;
    char text[512], why_not[512]; /* text: the error, where there is one */
} gpu;

static void *try_gpu(void *context) {
    gpu *g = context;
    g->status = g->is_attention ? xp_self_test_gpu_attention(g->index, g->text, sizeof g->text,
                                                             g->why_not, sizeof g->why_not)
                                : xp_self_test_gpu_ops(g->index, g->text, sizeof g->text);
    if (g->status != XP_OK)
        snprintf(g->text, sizeof g->text, "%s", xp_last_error());
    return NULL;
}

/* All at the same time: what is loaded onto a GPU takes a second or more. */
static void try_all(gpu *gpus, int n, bool is_attention) {
    for (int i = 0; i < n; i++) {
        gpus[i] = (gpu){.index = i, .is_attention = is_attention};
        gpus[i].has_thread = pthread_create(&gpus[i].thread, NULL, try_gpu, &gpus[i]) == 0;
        if (!gpus[i].has_thread)
            try_gpu(&gpus[i]);
    }
    for (int i = 0; i < n; i++)
        if (gpus[i].has_thread)
            pthread_join(gpus[i].thread, NULL);
}

/* Those that fail, by the first of them. A GPU without memory is another program's. */
static bool tell_failure(const char *name, const gpu *gpus, int n) {
    char text[600];
    int first = -1, n_failed = 0;
    bool is_full = true;
    for (int i = 0; i < n; i++) {
        if (gpus[i].status == XP_OK)
            continue;
        first = first < 0 ? i : first;
        is_full = is_full && gpus[i].status == XP_ENOMEM;
        n_failed++;
    }
    if (first < 0)
        return false;
    const bool named = strncmp(gpus[first].text, "cuda:", 5) == 0;
    int k = named ? snprintf(text, sizeof text, "%s", gpus[first].text)
                  : snprintf(text, sizeof text, "cuda:%d: %s", first, gpus[first].text);
    if (n_failed > 1 && k < (int)sizeof text)
        snprintf(text + k, sizeof text - (size_t)k, "; %d GPUs of %d fail", n_failed, n);
    doctor_child_tell(is_full ? MISSING : BROKEN, name, text);
    return true;
}

static void tell_gpus(const char *name, const char *who, int n) {
    char text[600];
    snprintf(text, sizeof text, "%s, on %d GPU%s", who, n, n == 1 ? "" : "s");
    doctor_child_tell(FOUND, name, text);
}

/* The library loads: then it is expected to serve. */
static bool has_cudnn(const xp_cuda_backend *cuda) {
    char text[512];
    bool usable = false;
    for (int i = 0; cuda->library_describe && cuda->library_describe(i, &usable, text, sizeof text);
         i++)
        if (strncmp(text, "cuDNN", 5) == 0)
            return usable;
    return false;
}

static void tell_attention(const xp_cuda_backend *cuda, const gpu *gpus, int n) {
    char text[600];
    for (int i = 0; i < n; i++)
        if (gpus[i].why_not[0] && has_cudnn(cuda)) {
            snprintf(text, sizeof text,
                     "cuDNN does not serve on cuda:%d (%s); the own kernels do, several times "
                     "slower",
                     i, gpus[i].why_not);
            doctor_child_tell(MISSING, DOCTOR_GPU_ATTENTION, text);
            return;
        }
    snprintf(text, sizeof text, "%s agree%s with the plain code, forward and backward, bf16",
             gpus[0].text, strcmp(gpus[0].text, "cuDNN") == 0 ? "s" : "");
    tell_gpus(DOCTOR_GPU_ATTENTION, text, n);
}

int doctor_on_gpus(void) {
    const xp_cuda_backend *cuda = NULL;
    int n = 0;
    char text[600];
    xp_status status = xp_cuda_backend_get(&cuda);
    if (status == XP_OK)
        status = cuda->device_count(&n);
    gpu *gpus = status == XP_OK ? calloc((size_t)n, sizeof *gpus) : NULL;
    if (status == XP_OK && !gpus)
        status = xp_error(XP_ENOMEM, "no memory for %d GPUs", n);
    if (status != XP_OK)
        return cli_fail(status);
    try_all(gpus, n, false);
    if (!tell_failure(DOCTOR_GPU_OPS, gpus, n)) {
        snprintf(text, sizeof text, "%s, bf16", gpus[0].text);
        tell_gpus(DOCTOR_GPU_OPS, text, n);
    }
    try_all(gpus, n, true);
    if (!tell_failure(DOCTOR_GPU_ATTENTION, gpus, n))
        tell_attention(cuda, gpus, n);
    free(gpus);
    return XP_EXIT_OK;
}

/* ---- ranks ------------------------------------------------------------------------------- */

/* What a rank is at, for the finding where it fails. */
typedef struct rank_test {
    const char *name;
    bool leads;
} rank_test;

static void passed(const rank_test *test, const char *text) {
    if (test->leads)
        doctor_child_tell(FOUND, test->name, text);
}

static xp_status try_gpus(const xp_bench_rank *rank, xp_bench_device *d, rank_test *test) {
    char text[256];
    bool has;
    test->name = DOCTOR_GPUS_SUM;
    XP_TRY(xp_self_test_gpus_open(rank, d, &has));
    if (!has)
        return XP_OK;
    XP_TRY(xp_self_test_gpus_sum(rank, d, text, sizeof text));
    XP_TRY(xp_comm_barrier(rank->world, NULL)); /* rank 0 speaks for all */
    passed(test, text);
    test->name = DOCTOR_GPUS_EP;
    XP_TRY(xp_self_test_gpus_ep(rank, d, text, sizeof text));
    XP_TRY(xp_comm_barrier(rank->world, NULL));
    passed(test, text);
    return XP_OK;
}

static xp_status try_rank(xp_comm *world, bool without_gpus, xp_bench_device *d, rank_test *test) {
    xp_bench_rank rank = {
        .rank = xp_comm_rank(world), .n_ranks = xp_comm_size(world), .world = world};
    for (int r = 0; r < rank.n_ranks; r++)
        rank.n_local += xp_comm_node(world, r) == xp_comm_node(world, rank.rank);
    test->leads = rank.rank == 0;
    char text[96];
    XP_TRY(xp_self_test_comm(world));
    snprintf(text, sizeof text, "%d processes on %d node%s agree on a sum", rank.n_ranks,
             xp_comm_n_nodes(world), xp_comm_n_nodes(world) == 1 ? "" : "s");
    passed(test, text);
    return without_gpus ? XP_OK : try_gpus(&rank, d, test);
}

int doctor_as_rank(bool without_gpus) {
    xp_comm *world = NULL;
    xp_bench_device d = {.gpu = -1};
    rank_test test = {.name = DOCTOR_PROCESSES};
    xp_status status = xp_mpi_world_comm(RANK_S, RANK_S, &world);
    if (status == XP_OK)
        status = try_rank(world, without_gpus, &d, &test);
    if (status != XP_OK) {
        if (world)
            xp_comm_abort(world, NULL);
        doctor_child_tell(BROKEN, test.name, xp_last_error());
        fflush(NULL);
        _exit(
            cli_exit_code(status)); /* MPI cannot be left in good order, and a GPU may still wait */
    }
    xp_comm_destroy(world);
    xp_bench_device_close(&d);
    return XP_EXIT_OK;
}
