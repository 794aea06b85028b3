/** What a killed process or a full disk leaves: always a complete newest checkpoint, never half of
 * one. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "checkpoint/state.h"
#include "core/file.h"
#include "core/rng.h"
#include "layout.h"
#include "scratch.h"

#define N_KILLS 50

/** Save steps from `first` on until killed; every third step is saved twice, the second time over
 * itself. */
static void save_until_killed(const char *folder, int64_t first, int n_ranks) {
    xp_layout layouts[3] = {0};
    xp_layout_cut(2, n_ranks, layouts);
    for (int64_t step = first;; step++) {
        for (int r = 0; r < n_ranks; r++)
            xp_layout_fill(&layouts[r], (int)step);
        for (int i = 0; i < (step % 3 == 0 ? 2 : 1); i++) {
            if (xp_layout_save(folder, step, 2, layouts, n_ranks) != XP_OK)
                _exit(1);
        }
    }
}

/** Step of the newest checkpoint after looking at all of it; -1 when there is none. */
static int64_t check_newest(const char *folder) {
    xp_ckpt *ckpt;
    xp_layout layout;
    xp_status status = xp_ckpt_open(folder, -1, &ckpt);
    if (status == XP_ENOENT)
        return -1;
    if (status != XP_OK)
        fail_msg("%s", xp_last_error());
    int64_t step = xp_ckpt_step(ckpt);
    if (xp_ckpt_verify(ckpt) != XP_OK)
        fail_msg("%s", xp_last_error());
    xp_layout_cut(6, 1, &layout);
    assert_int_equal(xp_ckpt_read(ckpt, layout.pieces, layout.n_pieces), XP_OK);
    assert_true(xp_layout_is(&layout, (int)step));
    xp_layout_free(&layout, 1);
    xp_ckpt_close(ckpt);
    return step;
}

/** Save step 0 in a process of its own. @return how long that took */
static double time_one_save(const char *folder) {
    double start = xp_time_s();
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        xp_layout layouts[3] = {0};
        xp_layout_cut(2, 3, layouts);
        for (int r = 0; r < 3; r++)
            xp_layout_fill(&layouts[r], 0);
        _exit(xp_layout_save(folder, 0, 2, layouts, 3) == XP_OK ? 0 : 1);
    }
    int how;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    return xp_time_s() - start;
}

static void test_kill_during_save(void **state) {
    const char *folder = *state;
    /* Kills fall anywhere in the first few saves of a process, however slow the machine is. */
    uint64_t max_pause_ns = (uint64_t)(fmin(4 * time_one_save(folder), 0.5) * 1e9);
    int64_t newest = check_newest(folder);
    for (int i = 0; i < N_KILLS; i++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            save_until_killed(folder, newest + 1, i % 2 == 0 ? 1 : 3);
        long pause_ns = (long)xp_rng_below(7, 1, (uint64_t)i, max_pause_ns);
        nanosleep(&(struct timespec){.tv_nsec = pause_ns}, NULL);
        assert_int_equal(kill(child, SIGKILL), 0);
        int how;
        assert_int_equal(waitpid(child, &how, 0), child);
        assert_true(WIFSIGNALED(how)); /* it was still saving, not out with an error */
        int64_t now = check_newest(folder);
        assert_true(now >= newest);
        newest = now;
    }
    print_message("%d kills, newest checkpoint: step %lld\n", N_KILLS, (long long)newest);
    assert_true(newest > 0);
    /* One more whole save leaves the kept checkpoints and nothing else. */
    xp_layout layout;
    xp_layout_cut(2, 1, &layout);
    xp_layout_fill(&layout, (int)newest + 1);
    assert_int_equal(xp_layout_save(folder, newest + 1, 2, &layout, 1), XP_OK);
    xp_layout_free(&layout, 1);
    assert_int_equal(xp_scratch_count(folder), 2);
}

/** One tensor of `n` numbers. @return the outcome; its message must speak of the missing room */
static xp_status save_large(const char *folder, int64_t step, int64_t n) {
    float *data = calloc((size_t)n, sizeof *data);
    if (data == NULL)
        return xp_error(XP_ENOMEM, "no memory for the test");
    xp_ckpt_piece piece = {.name = "w", .n_dims = 1, .shape = {n}, .n = n, .data = data};
    xp_ckpt_save_args args = {.folder = folder, .step = step, .pieces = &piece, .n_pieces = 1};
    xp_status status = xp_ckpt_save(&args);
    free(data);
    return status;
}

/** In a child: a small save works, a large one does not fit, the small one is left. 0 = good. */
static int try_full_disk(const char *folder, const char *expected) {
    if (save_large(folder, 1, 1000) != XP_OK)
        return 1;
    if (save_large(folder, 2, 1000000) != XP_EIO)
        return 2;
    if (strstr(xp_last_error(), expected) == NULL || strstr(xp_last_error(), "free some") == NULL) {
        print_error("%s\n", xp_last_error());
        return 3;
    }
    if (xp_scratch_count(folder) != 1)
        return 4;
    xp_ckpt *ckpt;
    if (xp_ckpt_open(folder, -1, &ckpt) != XP_OK)
        return 5;
    bool whole = xp_ckpt_step(ckpt) == 1 && xp_ckpt_verify(ckpt) == XP_OK;
    xp_ckpt_close(ckpt);
    return whole ? 0 : 6;
}

static int wait_for(pid_t child) {
    int how;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFEXITED(how));
    return WEXITSTATUS(how);
}

static void test_file_size_limit(void **state) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct rlimit limit = {.rlim_cur = 1 << 20, .rlim_max = 1 << 20};
        signal(SIGXFSZ, SIG_IGN);
        _exit(setrlimit(RLIMIT_FSIZE, &limit) != 0 ? 9 : try_full_disk(*state, "too large"));
    }
    assert_int_equal(wait_for(child), 0);
}

/** A real full disk: a tmpfs of 2 MB, in a mount namespace of its own where the system lets us have
 * one. */
static void test_full_disk(void **state) {
    enum { CANNOT_MOUNT = 77 };
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const char *folder = *state;
        if ((unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) ||
            (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) ||
            mount("tmpfs", folder, "tmpfs", 0, "size=2m") != 0)
            _exit(CANNOT_MOUNT);
        _exit(try_full_disk(folder, "No space left on device"));
    }
    int code = wait_for(child);
    if (code == CANNOT_MOUNT) {
        print_message("skipped: this machine lets nobody mount a tmpfs\n");
        skip();
    }
    assert_int_equal(code, 0);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, xp_scratch_setup, xp_scratch_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_kill_during_save),
        TEST(test_file_size_limit),
        TEST(test_full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
