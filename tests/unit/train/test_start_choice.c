/* Threads, processes, or one rank of a launcher: what expar train starts. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <string.h>
#include "train/start_choice.h"

static const struct {
    const char *ranks;
    int64_t ngpu, ep;
    xp_start_facts facts;
    xp_start_kind kind;
    int n_ranks;
} cases[] = {
    /* the CPU */
    {"auto", 0, 1, {.n_nodes = 1}, XP_START_THREADS, 1},
    {"auto", 4, 4, {.n_nodes = 1}, XP_START_THREADS, 4},
    {"processes", 4, 1, {.n_nodes = 1}, XP_START_PROCESSES, 4},
    {"processes", 0, 1, {.n_nodes = 1}, XP_START_THREADS, 1},
    /* GPUs: all of them, a process each; shared by threads */
    {"auto", 0, 8, {.n_gpus = 8, .n_nodes = 1}, XP_START_PROCESSES, 8},
    {"auto", 2, 2, {.n_gpus = 8, .n_nodes = 1}, XP_START_PROCESSES, 2},
    {"auto", 1, 1, {.n_gpus = 8, .n_nodes = 1}, XP_START_THREADS, 1},
    {"auto", 0, 1, {.n_gpus = 1, .n_nodes = 1}, XP_START_THREADS, 1},
    {"auto", 4, 4, {.n_gpus = 2, .n_nodes = 1}, XP_START_THREADS, 4},
    {"processes", 4, 4, {.n_gpus = 2, .n_nodes = 1}, XP_START_PROCESSES, 4},
    {"threads", 2, 2, {.n_gpus = 2, .n_nodes = 1}, XP_START_THREADS, 2},
    /* nodes */
    {"auto", 0, 16, {.n_gpus = 8, .n_nodes = 2, .on_nodes = true}, XP_START_PROCESSES, 16},
    {"auto", 2, 1, {.n_nodes = 3, .on_nodes = true}, XP_START_PROCESSES, 6},
    /* a launcher has started it */
    {"auto", 0, 8, {.launched = true, .n_gpus = 8, .n_nodes = 1}, XP_START_RANK, 0},
    {"threads", 4, 8, {.launched = true, .n_nodes = 1}, XP_START_RANK, 0},
};

static xp_config config_of(const char *ranks, int64_t ngpu, int64_t ep) {
    xp_config config;
    memset(&config, 0, sizeof config);
    config.job.ranks = ranks;
    config.job.ngpu = ngpu;
    config.parallelism.expert_parallel_degree = ep;
    return config;
}

static void every_case(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const xp_config config = config_of(cases[i].ranks, cases[i].ngpu, cases[i].ep);
        xp_start start;
        if (xp_start_choose_from(&config, &cases[i].facts, &start) != XP_OK)
            fail_msg("case %zu: %s", i, xp_last_error());
        if (start.kind != cases[i].kind || start.n_ranks != cases[i].n_ranks)
            fail_msg("case %zu: kind %d with %d ranks", i, (int)start.kind, start.n_ranks);
    }
}

static void expect_error(const xp_config *config, xp_start_facts facts, const char *text) {
    xp_start start;
    assert_int_equal(xp_start_choose_from(config, &facts, &start), XP_ECONFIG);
    if (!strstr(xp_last_error(), text))
        fail_msg("\"%s\" is not in: %s", text, xp_last_error());
}

static void errors_say_what_to_set(void **state) {
    (void)state;
    xp_config config = config_of("auto", 0, 4);
    expect_error(&config, (xp_start_facts){.n_nodes = 1}, "set NGPU=4");
    expect_error(&config, (xp_start_facts){.n_gpus = 2, .n_nodes = 1}, "there are 2 GPUs");
    config = config_of("threads", 2, 1);
    expect_error(&config, (xp_start_facts){.n_nodes = 2, .on_nodes = true}, "job.ranks");
    expect_error(&config, (xp_start_facts){.launched = true, .n_nodes = 2, .on_nodes = true},
                 "leave out mpirun");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_case),
        cmocka_unit_test(errors_say_what_to_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
