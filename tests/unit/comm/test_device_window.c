/* Windows in GPU memory on a table that only writes down who opens, closes and frees what: for
 * ranks that share addresses and for ranks that do not. The memory is the CPU's. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>
#include "comm/device/window.h"
#include "comm/provider.h"
#include "ranks.h"

#define MAX_RANKS 8
#define BYTES     1000

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int n_enabled, n_exported, n_open, n_opened, fails_at; /* the open that fails; 0: none */

static void reset(int failing) {
    n_enabled = n_exported = n_open = n_opened = 0;
    fails_at = failing;
}

static int count(int *what, int change) {
    pthread_mutex_lock(&lock);
    const int now = *what += change;
    pthread_mutex_unlock(&lock);
    return now;
}

static xp_status enable_peer(xp_device *device, xp_device *peer) {
    if (device == peer || !peer)
        return xp_error(XP_EINTERNAL, "a rank enables itself");
    count(&n_enabled, 1);
    return XP_OK;
}

static xp_status export_memory(xp_device *device, void *data, char handle[XP_IPC_HANDLE_BYTES]) {
    (void)device;
    count(&n_exported, 1);
    memset(handle, 0, XP_IPC_HANDLE_BYTES);
    memcpy(handle + 8, &data, sizeof data);
    return XP_OK;
}

static xp_status open_memory(xp_device *device, const char handle[XP_IPC_HANDLE_BYTES],
                             void **data) {
    (void)device;
    if (count(&n_opened, 1) == fails_at)
        return xp_error(XP_EDEVICE, "made to fail");
    count(&n_open, 1);
    memcpy(data, handle + 8, sizeof *data);
    return XP_OK;
}

/* Its owner must not have freed it; a window that was never whole is still zero. */
static void close_memory(xp_device *device, void *data) {
    (void)device;
    if (*(int *)data != (fails_at > 0 ? 0 : 4711))
        abort();
    count(&n_open, -1);
}

static const xp_gpu_peer_access sharing = {.enable_peer = enable_peer,
                                           .export_memory = export_memory,
                                           .open_memory = open_memory,
                                           .close_memory = close_memory,
                                           .granularity = 4096};

static xp_status make(rank_job *job, bool processes, xp_device **device, xp_window **window) {
    const xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
    RANK_CHECK(job, xp_device_create(&args, device) == XP_OK);
    job->comm->same_process = !processes;
    return xp_device_window_create(
        &(xp_device_window_args){job->comm, *device, &sharing, BYTES, "ep"}, window);
}

static void use(rank_job *job, bool processes) {
    xp_device *device;
    xp_window *window = NULL;
    RANK_CHECK(job, make(job, processes, &device, &window) == XP_OK);
    if (!window)
        return;
    char *mine = xp_window_peer(window, job->rank);
    for (int i = 0; i < BYTES; i++)
        RANK_CHECK(job, mine[i] == 0);
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    for (int r = 0; r < job->n_ranks; r++)
        ((int *)xp_window_peer(window, r))[1 + job->rank] = job->rank + 100;
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    for (int r = 0; r < job->n_ranks; r++)
        RANK_CHECK(job, ((int *)(void *)mine)[1 + r] == r + 100);
    *(int *)(void *)mine = 4711;
    RANK_CHECK(job, xp_comm_barrier(job->comm, NULL) == XP_OK);
    xp_comm_window_destroy(window);
    RANK_CHECK(job, xp_device_bytes(device, NULL) == 0);
    xp_device_destroy(device);
}

static void threads_body(rank_job *job) {
    use(job, false);
}

static void processes_body(rank_job *job) {
    use(job, true);
}

static void test_threads(void **state) {
    (void)state;
    for (int n = 1; n <= MAX_RANKS; n++) {
        reset(0);
        expect_all(n, threads_body);
        assert_int_equal(n_enabled, n * (n - 1));
        assert_int_equal(n_exported + n_opened, 0);
    }
}

static void test_processes(void **state) {
    (void)state;
    for (int n = 1; n <= MAX_RANKS; n++) {
        reset(0);
        expect_all(n, processes_body);
        assert_int_equal(n_exported, n > 1 ? n : 0);
        assert_int_equal(n_opened, n * (n - 1));
        assert_int_equal(n_open + n_enabled, 0);
    }
}

static void failure_body(rank_job *job) {
    xp_device *device;
    xp_window *window = NULL;
    job->status = make(job, true, &device, &window);
    snprintf(job->error, sizeof job->error, "%s", xp_last_error());
    RANK_CHECK(job, window == NULL);
    RANK_CHECK(job, xp_device_bytes(device, NULL) == 0);
    xp_device_destroy(device);
}

static void test_failure(void **state) {
    (void)state;
    reset(5);
    rank_job *jobs = run_ranks(4, 20, NULL, failure_body);
    for (int r = 0; r < 4; r++) {
        if (jobs[r].n_wrong)
            fail_msg("%s", jobs[r].first);
        assert_int_not_equal(jobs[r].status, XP_OK);
        assert_non_null(strstr(jobs[r].error, "made to fail"));
    }
    assert_int_equal(n_open, 0);
    free(jobs);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_processes),
        cmocka_unit_test(test_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
