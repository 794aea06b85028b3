/* Predicted bytes are the real ones, tag by tag, for one rank and for a rank of several. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <pthread.h>
#include <string.h>
#include "parallel/run.h"
#include "predict/predict.h"

#define N_RANKS 4

static xp_config_set *load(int n, char **options) {
    char *argv[32] = {"--model.flavor",
                      "tiny_moe",
                      "--training.seq_len",
                      "64",
                      "--training.local_batch_size",
                      "2",
                      "--training.dataset_path",
                      "x"};
    int argc = 8;
    for (int i = 0; i < n; i++)
        argv[argc++] = options[i];
    xp_config_set *set = NULL;
    if (xp_config_load(argc, argv, false, &set) != XP_OK)
        fail_msg("%s", xp_last_error());
    return set;
}

static void compare(const xp_device *device, const xp_memory_prediction *p) {
    assert_true(p->n_tags >= 4);
    assert_int_equal(xp_device_bytes(device, NULL), p->device_bytes);
    for (int i = 0; i < p->n_tags; i++)
        assert_int_equal(xp_device_bytes(device, p->tags[i].tag), p->tags[i].n_bytes);
}

static int64_t tag_bytes(const xp_memory_prediction *p, const char *tag) {
    for (int i = 0; i < p->n_tags; i++)
        if (strcmp(p->tags[i].tag, tag) == 0)
            return p->tags[i].n_bytes;
    return 0;
}

static void one_rank(void **state) {
    (void)state;
    static char *const variants[][2] = {
        {"--model.flavor", "tiny_moe"},           {"--training.global_batch_size", "6"},
        {"--activation_checkpoint.mode", "full"}, {"--activation_checkpoint.mode", "selective"},
        {"--training.attention", "document"},
    };
    for (size_t v = 0; v < sizeof variants / sizeof variants[0]; v++) {
        char *options[2] = {variants[v][0], variants[v][1]};
        xp_config_set *set = load(2, options);
        const xp_config *config = xp_config_get(set);
        xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
        xp_device *device = NULL;
        xp_mesh layout;
        xp_memory_prediction p;
        xp_run run;
        assert_int_equal(xp_mesh_layout(config, 1, 0, &layout), XP_OK);
        assert_int_equal(xp_predict_memory(config, &layout, &p), XP_OK);
        assert_int_equal(xp_device_create(&args, &device), XP_OK);
        assert_int_equal(xp_run_reserve(config, device, NULL, NULL, &run), XP_OK);
        compare(device, &p);
        xp_run_release(&run);
        assert_int_equal(xp_device_bytes(device, NULL), 0);
        xp_device_destroy(device);
        xp_config_destroy(set);
    }
}

typedef struct member {
    xp_thread_world *world;
    const xp_config *config;
    int rank;
    xp_status status;
    xp_device *device;
    xp_memory_prediction p;
} member;

static xp_status visit(member *m) {
    xp_comm *comm = NULL;
    xp_mesh layout;
    xp_run run;
    XP_TRY(xp_thread_world_comm(m->world, m->rank, &comm));
    xp_status status = xp_mesh_layout(m->config, N_RANKS, m->rank, &layout);
    if (status == XP_OK)
        status = xp_predict_memory(m->config, &layout, &m->p);
    if (status == XP_OK)
        status = xp_run_reserve(m->config, m->device, comm, NULL, &run);
    if (status == XP_OK) {
        for (int i = 0; i < m->p.n_tags; i++)
            if (xp_device_bytes(m->device, m->p.tags[i].tag) != m->p.tags[i].n_bytes)
                status = xp_error(XP_EINTERNAL, "tag %s", m->p.tags[i].tag);
        xp_run_release(&run);
    }
    xp_comm_destroy(comm);
    return status;
}

static void *member_main(void *context) {
    member *m = context;
    m->status = visit(m);
    return NULL;
}

static void ranks(void **state) {
    (void)state;
    static char *const degrees[] = {"1", "2", "4"};
    int64_t params[3] = {0};
    for (int d = 0; d < 3; d++) {
        char *options[2] = {"--parallelism.expert_parallel_degree", degrees[d]};
        xp_config_set *set = load(2, options);
        xp_thread_world *world = NULL;
        member members[N_RANKS];
        pthread_t threads[N_RANKS];
        assert_int_equal(xp_thread_world_create(N_RANKS, 60, &world), XP_OK);
        for (int r = 0; r < N_RANKS; r++) {
            xp_device_args args = {.kind = XP_DEVICE_CPU, .n_threads = 1};
            members[r] = (member){.world = world, .config = xp_config_get(set), .rank = r};
            assert_int_equal(xp_device_create(&args, &members[r].device), XP_OK);
            assert_int_equal(pthread_create(&threads[r], NULL, member_main, &members[r]), 0);
        }
        for (int r = 0; r < N_RANKS; r++) {
            pthread_join(threads[r], NULL);
            assert_int_equal(members[r].status, XP_OK);
            xp_device_destroy(members[r].device);
        }
        params[d] = tag_bytes(&members[0].p, "params");
        xp_thread_world_destroy(world);
        xp_config_destroy(set);
    }
    /* Most of the model is experts: they are held once per EP group. */
    assert_true(params[1] < params[0] * 6 / 10);
    assert_true(params[2] < params[1] * 65 / 100);
}

static void optimizer_falls(void **state) {
    (void)state;
    xp_config_set *set = load(0, NULL);
    int64_t one = 0;
    for (int n = 1; n <= 8; n *= 2) {
        xp_mesh layout;
        xp_memory_prediction p;
        assert_int_equal(xp_mesh_layout(xp_config_get(set), n, n - 1, &layout), XP_OK);
        assert_int_equal(xp_predict_memory(xp_config_get(set), &layout, &p), XP_OK);
        int64_t bytes = tag_bytes(&p, "optimizer");
        one = n == 1 ? bytes : one;
        assert_in_range(bytes, one / n, one / n + one / 100);
    }
    xp_config_destroy(set);
}

/* The rank slice on a GPU, predicted on any machine: 4 x 4096 tokens fit an H200 without
 * recomputation. */
static void rank_slice_fits(void **state) {
    (void)state;
    static const struct {
        const char *tag;
        int64_t bytes; /* at most, and at least 95 % of it */
    } limits[] = {
        {"params", 10400000000},    {"grads", 10400000000},
        {"optimizer", 52000000000}, {"activations", 41000000000}, /* 52 KB a token and layer */
        {"workspace", 4200000000},
    };
    char *argv[] = {"--job.config_file", XP_SOURCE_DIR "/configs/rank_slice_30b_a3b.toml"};
    xp_config_set *set = NULL;
    xp_mesh layout;
    xp_memory_prediction p;
    if (xp_config_load(2, argv, false, &set) != XP_OK)
        fail_msg("%s", xp_last_error());
    assert_int_equal(xp_mesh_layout(xp_config_get(set), 1, 0, &layout), XP_OK);
    if (xp_predict_memory_on(XP_DEVICE_CUDA, xp_config_get(set), &layout, &p) != XP_OK)
        fail_msg("%s", xp_last_error());
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++)
        assert_in_range(tag_bytes(&p, limits[i].tag), limits[i].bytes / 100 * 95, limits[i].bytes);
    assert_true(p.device_bytes < (int64_t)110 << 30);
    /* The CPU trains in fp32: there the same config is refused. */
    assert_int_equal(xp_predict_memory_on(XP_DEVICE_CPU, xp_config_get(set), &layout, &p),
                     XP_ECONFIG);
    xp_config_destroy(set);
}

/* The rank slice's head takes 4096 rows at a time and sums its gradient in fp32 where that leaves 1 GiB
 * of a GPU free, else 2048 rows. */
static void head_follows_memory(void **state) {
    (void)state;
    static const struct {
        int64_t gib;
        bool large;
    } cases[] = {{0, true}, {140, true}, {110, false}, {80, false}};
    const int64_t row = (int64_t)151936 * 2, sum = (int64_t)151936 * 2048 * 4;
    char *argv[] = {"--job.config_file", XP_SOURCE_DIR "/configs/rank_slice_30b_a3b.toml"};
    xp_config_set *set = NULL;
    xp_mesh layout;
    int64_t rest = -1;
    if (xp_config_load(2, argv, false, &set) != XP_OK)
        fail_msg("%s", xp_last_error());
    assert_int_equal(xp_mesh_layout(xp_config_get(set), 1, 0, &layout), XP_OK);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        xp_memory_prediction p;
        if (xp_predict_memory_within(XP_DEVICE_CUDA, cases[i].gib << 30, xp_config_get(set),
                                     &layout, &p) != XP_OK)
            fail_msg("%s", xp_last_error());
        const int64_t head = cases[i].large ? 4096 * row + sum : 2048 * row;
        const int64_t other = tag_bytes(&p, "workspace") - head;
        rest = rest < 0 ? other : rest;
        assert_int_equal(other, rest);
    }
    xp_config_destroy(set);
}

/* Eight rows of the slice fit an H200 because gradients take the memory of spent expert rows there; seven fit
 * beside gradients with memory of their own. */
static void gradients_follow_memory(void **state) {
    (void)state;
    static const struct {
        const char *rows, *reuse;
        bool own, fits;
    } cases[] = {{"4", "auto", true, true},
                 {"7", "auto", true, true},
                 {"8", "auto", false, true},
                 {"8", "false", true, false},
                 {"4", "true", false, true}};
    const int64_t has = (int64_t)(139.8 * (1 << 30)), context = (int64_t)(1.1 * (1 << 30));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *argv[] = {"--job.config_file",
                        XP_SOURCE_DIR "/configs/rank_slice_30b_a3b.toml",
                        "--training.local_batch_size",
                        (char *)cases[i].rows,
                        "--activation_checkpoint.reuse_for_gradients",
                        (char *)cases[i].reuse};
        xp_config_set *set = NULL;
        xp_mesh layout;
        xp_memory_prediction p;
        if (xp_config_load(6, argv, false, &set) != XP_OK)
            fail_msg("%s", xp_last_error());
        assert_int_equal(xp_mesh_layout(xp_config_get(set), 1, 0, &layout), XP_OK);
        if (xp_predict_memory_within(XP_DEVICE_CUDA, has, xp_config_get(set), &layout, &p) != XP_OK)
            fail_msg("%s", xp_last_error());
        assert_int_equal(tag_bytes(&p, "grads") > 0, cases[i].own);
        assert_int_equal(p.device_bytes <= has - context, cases[i].fits);
        xp_config_destroy(set);
    }
}

/* 10B-A1B on two GPUs: expert rows of all 32 layers are kept for the whole capacity (2 x the balanced
 * load at EP 2) where there is memory, else for 1.25 x. */
static void saved_rows_follow_memory(void **state) {
    (void)state;
    static const struct {
        const char *factor;
        int64_t gib;
        double kept; /* over the balanced load */
    } cases[] = {{"0", 200, 2.0}, {"0", 0, 2.0},    {"0", 123, 1.25},
                 {"0", 80, 1.25}, {"1.5", 80, 1.5}, {"3", 200, 2.0}};
    const int64_t row = (int64_t)2 * 512 * 2, balanced = (int64_t)8 * 4096 * 8 * 32;
    int64_t rest = -1;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *argv[] = {"--job.config_file",
                        XP_SOURCE_DIR "/configs/qwen3_10b_a1b_deepep.toml",
                        "--parallelism.expert_parallel_degree",
                        "2",
                        "--moe.saved_rows_factor",
                        (char *)cases[i].factor};
        xp_config_set *set = NULL;
        xp_mesh layout;
        xp_memory_prediction p;
        if (xp_config_load(6, argv, false, &set) != XP_OK)
            fail_msg("%s", xp_last_error());
        assert_int_equal(xp_mesh_layout(xp_config_get(set), 2, 0, &layout), XP_OK);
        if (xp_predict_memory_within(XP_DEVICE_CUDA, cases[i].gib << 30, xp_config_get(set),
                                     &layout, &p) != XP_OK)
            fail_msg("%s", xp_last_error());
        const int64_t other =
            tag_bytes(&p, "activations") - (int64_t)(cases[i].kept * (double)(balanced * row));
        rest = rest < 0 ? other : rest;
        assert_int_equal(other, rest);
        xp_config_destroy(set);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_rank),
        cmocka_unit_test(ranks),
        cmocka_unit_test(optimizer_falls),
        cmocka_unit_test(rank_slice_fits),
        cmocka_unit_test(head_follows_memory),
        cmocka_unit_test(gradients_follow_memory),
        cmocka_unit_test(saved_rows_follow_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
