/* What a program finds after it has used the library is what it had before: signal handlers and mask,
 * environment, OpenBLAS's threads, locale, umask, folder, rounding, files, threads, libraries. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <dirent.h>
#include <fenv.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "expar/expar.h"

extern char **environ;
extern void openblas_set_num_threads(int n_threads);
extern int openblas_get_num_threads(void);

#define N_SIGNALS 64

typedef struct process_state {
    void (*handlers[N_SIGNALS])(int);
    sigset_t mask;
    uint64_t environment;
    int n_blas_threads, n_files, n_threads, rounding, n_libraries;
    mode_t mask_of_files;
    char folder[4096], locale[256];
} process_state;

static int count_entries(const char *folder) {
    DIR *d = opendir(folder);
    int n = 0;
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

static int count_libraries(void) {
    char line[4096];
    int n = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps && fgets(line, sizeof line, maps))
        n += strstr(line, ".so") && strstr(line, "r-xp");
    if (maps)
        fclose(maps);
    return n;
}

static void look(process_state *s) {
    memset(s, 0, sizeof *s);
    for (int i = 1; i < N_SIGNALS; i++) {
        struct sigaction action = {0};
        sigaction(i, NULL, &action);
        s->handlers[i] = action.sa_handler;
    }
    pthread_sigmask(SIG_SETMASK, NULL, &s->mask);
    s->environment = 14695981039346656037U;
    for (char **at = environ; *at; at++)
        for (const char *c = *at; *c; c++)
            s->environment = (s->environment ^ (unsigned char)*c) * 1099511628211U;
    s->n_blas_threads = openblas_get_num_threads();
    s->n_files = count_entries("/proc/self/fd");
    s->n_threads = count_entries("/proc/self/task");
    s->n_libraries = count_libraries();
    s->rounding = fegetround();
    s->mask_of_files = umask(0);
    umask(s->mask_of_files);
    if (!getcwd(s->folder, sizeof s->folder))
        s->folder[0] = '\0';
    snprintf(s->locale, sizeof s->locale, "%s", setlocale(LC_ALL, NULL));
}

enum { N_RANKS = 2, N_TOKENS = 64, DIM = 64 };

typedef struct rank {
    xp_thread_world *world;
    int rank;
    bool ok;
    pthread_t thread;
} rank;

static int all_gather(void *context, const void *send, void *recv, size_t n_bytes) {
    return xp_comm_all_gather(context, send, recv, (int64_t)n_bytes, XP_U8, NULL);
}

/* @return false: the library has failed */
static bool use_layer(xp_comm *comm) {
    const xp_device_args device_args = {0};
    const xp_moe_args args = {.num_experts = 4,
                              .top_k = 2,
                              .dim = DIM,
                              .moe_dim = DIM,
                              .max_tokens = N_TOKENS,
                              .use_deepep = true};
    xp_device *device = NULL;
    xp_stream *stream = NULL;
    xp_moe *moe = NULL;
    float *rows = calloc(3 * N_TOKENS * DIM, sizeof *rows);
    const xp_tensor x = xp_tensor_2d(rows, XP_F32, N_TOKENS, DIM);
    xp_tensor out = xp_tensor_2d(rows + N_TOKENS * DIM, XP_F32, N_TOKENS, DIM);
    xp_tensor dx = xp_tensor_2d(rows + 2 * N_TOKENS * DIM, XP_F32, N_TOKENS, DIM);
    const bool ok = rows && xp_device_create(&device_args, &device) == XP_OK &&
                    xp_stream_create(device, XP_STREAM_WORKER, &stream) == XP_OK &&
                    xp_moe_create(&args, comm, device, &moe) == XP_OK &&
                    xp_moe_init_params(moe, 1, 0.1F, 0.1F) == XP_OK &&
                    xp_moe_forward(moe, &x, &out, true, stream) == XP_OK &&
                    xp_moe_backward(moe, &x, &out, &dx, false, stream) == XP_OK &&
                    xp_stream_sync(stream) == XP_OK;
    xp_moe_destroy(moe);
    xp_stream_destroy(stream);
    xp_device_destroy(device);
    free(rows);
    return ok;
}

static void *rank_main(void *context) {
    rank *r = context;
    xp_comm *threads = NULL, *comm = NULL;
    if (xp_thread_world_comm(r->world, r->rank, &threads) != XP_OK)
        return NULL;
    const xp_comm_callbacks table = {
        .rank = r->rank, .size = N_RANKS, .context = threads, .all_gather = all_gather};
    r->ok = xp_comm_from_callbacks(&table, &comm) == XP_OK && use_layer(comm);
    xp_comm_destroy(comm);
    xp_comm_destroy(threads);
    return NULL;
}

static void use_library(void) {
    rank ranks[N_RANKS] = {0};
    xp_thread_world *world = NULL;
    assert_int_equal(xp_thread_world_create(N_RANKS, 60, &world), XP_OK);
    for (int r = 0; r < N_RANKS; r++) {
        ranks[r].world = world;
        ranks[r].rank = r;
        assert_int_equal(pthread_create(&ranks[r].thread, NULL, rank_main, &ranks[r]), 0);
    }
    for (int r = 0; r < N_RANKS; r++)
        pthread_join(ranks[r].thread, NULL);
    for (int r = 0; r < N_RANKS; r++)
        assert_true(ranks[r].ok);
    xp_thread_world_destroy(world);
}

static void test_nothing_is_changed(void **state) {
    (void)state;
    static process_state before, after;
    openblas_set_num_threads(2);
    look(&before);
    use_library();
    look(&after);
    assert_memory_equal(before.handlers, after.handlers, sizeof before.handlers);
    assert_memory_equal(&before.mask, &after.mask, sizeof before.mask);
    assert_true(before.environment == after.environment);
    assert_int_equal(before.n_blas_threads, after.n_blas_threads);
    assert_int_equal(before.n_files, after.n_files);
    assert_int_equal(before.n_threads, after.n_threads);
    assert_int_equal(before.n_libraries, after.n_libraries);
    assert_int_equal(before.rounding, after.rounding);
    assert_int_equal(before.mask_of_files, after.mask_of_files);
    assert_string_equal(before.folder, after.folder);
    assert_string_equal(before.locale, after.locale);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_nothing_is_changed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
