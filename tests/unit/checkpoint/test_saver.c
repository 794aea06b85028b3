/** Asynchronous saves: the state at the start is what is saved, failures arrive at poll and wait,
 * on every rank. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "checkpoint/state.h"
#include "core/file.h"
#include "layout.h"
#include "scratch.h"

#define MAX_RANKS 4

typedef struct run {
    const char *folder;
    xp_layout *layouts;
    int64_t published[MAX_RANKS];
    xp_status statuses[MAX_RANKS];
    char errors[MAX_RANKS][1024];
    char told[MAX_RANKS][1024]; /* why the run ended */
} run;

static xp_ckpt_save_args save_args(const run *r, int rank, int64_t step) {
    return (xp_ckpt_save_args){.folder = r->folder,
                               .step = step,
                               .pieces = r->layouts[rank].pieces,
                               .n_pieces = r->layouts[rank].n_pieces,
                               .keep_latest_k = 3};
}

static bool holds(const char *folder, int64_t step, int version) {
    xp_layout layout;
    xp_layout_cut(4, 1, &layout);
    bool same = xp_layout_load(folder, step, &layout, 1) == XP_OK && xp_layout_is(&layout, version);
    xp_layout_free(&layout, 1);
    return same;
}

static xp_status save_steps(run *r, xp_ckpt_saver *saver, int rank) {
    /* Polled like a training loop; the state changes as soon as start has returned. */
    for (int step = 1; step <= 4; step++) {
        int64_t published = -1;
        xp_layout_fill(&r->layouts[rank], step);
        xp_ckpt_save_args args = save_args(r, rank, step);
        XP_TRY(xp_ckpt_saver_start(saver, &args));
        xp_layout_fill(&r->layouts[rank], 1000 + step);
        while (published < 0) {
            XP_TRY(xp_ckpt_saver_poll(saver, &published));
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
        }
        if (published != step)
            return xp_error(XP_EINTERNAL, "step %lld was published", (long long)published);
    }
    /* Start waits for the save before; what that published is told later. */
    for (int step = 5; step <= 6; step++) {
        xp_layout_fill(&r->layouts[rank], step);
        xp_ckpt_save_args args = save_args(r, rank, step);
        XP_TRY(xp_ckpt_saver_start(saver, &args));
    }
    XP_TRY(xp_ckpt_saver_wait(saver, &r->published[rank]));
    int64_t none;
    XP_TRY(xp_ckpt_saver_wait(saver, &none));
    XP_TRY(xp_ckpt_saver_poll(saver, &none));
    return none == -1 ? XP_OK : xp_error(XP_EINTERNAL, "something was published twice");
}

static void keep_outcome(run *r, int rank, xp_status status) {
    r->statuses[rank] = status;
    snprintf(r->errors[rank], sizeof r->errors[rank], "%s", xp_last_error());
}

static void save_steps_body(void *context, xp_comm *comm, int rank) {
    run *r = context;
    xp_ckpt_saver *saver;
    xp_status status = xp_ckpt_saver_create(comm, &saver);
    if (status == XP_OK) {
        status = save_steps(r, saver, rank);
        xp_ckpt_saver_destroy(saver);
    }
    keep_outcome(r, rank, status);
}

static void check_steps(const char *folder, int n_ranks) {
    xp_layout layouts[MAX_RANKS] = {0};
    run r = {.folder = folder, .layouts = layouts};
    xp_layout_cut(8, n_ranks, layouts);
    if (n_ranks == 1)
        save_steps_body(&r, NULL, 0);
    else
        xp_layout_run_ranks(n_ranks, save_steps_body, &r);
    for (int rank = 0; rank < n_ranks; rank++) {
        if (r.statuses[rank] != XP_OK)
            fail_msg("rank %d: %s", rank, r.errors[rank]);
        assert_int_equal(r.published[rank], 6);
    }
    xp_layout_free(layouts, n_ranks);
    assert_true(holds(folder, 4, 4) && holds(folder, 5, 5) && holds(folder, -1, 6));
    assert_int_equal(xp_scratch_count(folder), 3);
}

static void test_one_rank(void **state) {
    check_steps(*state, 1);
}

static void test_four_ranks(void **state) {
    check_steps(*state, 4);
}

/** Rank 2's thread cannot write its shard (a name that no file can hold): everyone hears it from
 * rank 2. */
static void failing_body(void *context, xp_comm *comm, int rank) {
    run *r = context;
    xp_ckpt_saver *saver;
    xp_status status = xp_ckpt_saver_create(comm, &saver);
    if (status == XP_OK) {
        xp_ckpt_save_args args = save_args(r, rank, 7);
        status = xp_ckpt_saver_start(saver, &args);
        if (status == XP_OK)
            status = xp_ckpt_saver_wait(saver, &r->published[rank]);
        xp_ckpt_saver_destroy(saver);
    }
    keep_outcome(r, rank, status);
    /* The others end the run with what they heard: it stays rank 2's failure. */
    if (xp_comm_barrier(comm, NULL) == XP_OK && rank != 2)
        xp_comm_abort(comm, NULL);
    if (rank != 2 && xp_comm_async_error(comm) != XP_OK)
        snprintf(r->told[rank], sizeof r->told[rank], "%s", xp_last_error());
}

static void test_failure_of_one_rank(void **state) {
    xp_layout layouts[MAX_RANKS] = {0};
    run r = {.folder = *state, .layouts = layouts};
    xp_layout_cut(8, MAX_RANKS, layouts);
    xp_ckpt_piece *piece = &layouts[2].pieces[layouts[2].n_pieces - 1];
    for (int phase = 0; phase < 2; phase++) {
        xp_ckpt_piece good = *piece;
        if (phase == 0)
            piece->name = "bad\nname"; /* fails in the thread */
        else
            piece->first = -1; /* fails before it starts */
        xp_layout_run_ranks(MAX_RANKS, failing_body, &r);
        *piece = good;
        for (int rank = 0; rank < MAX_RANKS; rank++) {
            assert_int_equal(r.statuses[rank], XP_EINVAL);
            if (rank != 2 && strstr(r.errors[rank], "rank 2: ") == NULL)
                fail_msg("rank %d says: %s", rank, r.errors[rank]);
            if (rank != 2 && strstr(r.told[rank], "rank 2 gave up in checkpoint: ") != r.told[rank])
                fail_msg("rank %d was told: %s", rank, r.told[rank]);
        }
        assert_int_equal(xp_scratch_count(*state), 0);
    }
    xp_layout_free(layouts, MAX_RANKS);
}

/** Rank 2 is lost after its save has started: the others hear why, and nothing is published. */
static void losing_body(void *context, xp_comm *comm, int rank) {
    run *r = context;
    xp_ckpt_saver *saver;
    xp_status status = xp_ckpt_saver_create(comm, &saver);
    if (status == XP_OK) {
        xp_ckpt_save_args args = save_args(r, rank, 7);
        status = xp_ckpt_saver_start(saver, &args);
        if (status == XP_OK && rank == 2)
            xp_comm_abort(comm, "rank 2 ran out of memory");
        else if (status == XP_OK)
            status = xp_ckpt_saver_wait(saver, &r->published[rank]);
        xp_ckpt_saver_destroy(saver);
    }
    keep_outcome(r, rank, status);
}

static void test_lost_rank(void **state) {
    xp_layout layouts[MAX_RANKS] = {0};
    run r = {.folder = *state, .layouts = layouts};
    xp_layout_cut(8, MAX_RANKS, layouts);
    for (int rank = 0; rank < MAX_RANKS; rank++)
        xp_layout_fill(&layouts[rank], 5);
    assert_int_equal(xp_layout_save(*state, 5, 0, layouts, MAX_RANKS), XP_OK);
    xp_layout_run_ranks(MAX_RANKS, losing_body, &r);
    for (int rank = 0; rank < MAX_RANKS; rank++) {
        if (rank != 2 && (r.statuses[rank] != XP_ECOMM ||
                          strstr(r.errors[rank], "rank 2 ran out of memory") == NULL))
            fail_msg("rank %d says: %s", rank, r.errors[rank]);
    }
    assert_true(holds(*state, -1, 5));
    assert_int_equal(xp_layout_save(*state, 9, 0, layouts, MAX_RANKS), XP_OK);
    assert_int_equal(xp_scratch_count(*state), 2);
    xp_layout_free(layouts, MAX_RANKS);
}

static void test_destroy_in_flight(void **state) {
    xp_layout layout;
    run r = {.folder = *state, .layouts = &layout};
    xp_layout_cut(8, 1, &layout);
    xp_layout_fill(&layout, 1);
    for (int i = 0; i < 20; i++) {
        xp_ckpt_saver *saver;
        xp_ckpt_save_args args = save_args(&r, 0, i);
        assert_int_equal(xp_ckpt_saver_create(NULL, &saver), XP_OK);
        assert_int_equal(xp_ckpt_saver_start(saver, &args), XP_OK);
        xp_ckpt_saver_destroy(saver);
    }
    xp_ckpt *ckpt;
    assert_int_equal(xp_ckpt_open(*state, -1, &ckpt), XP_ENOENT);
    xp_ckpt_save_args args = save_args(&r, 0, 100);
    assert_int_equal(xp_ckpt_save(&args), XP_OK);
    assert_int_equal(xp_scratch_count(*state), 1);
    xp_layout_free(&layout, 1);
    xp_ckpt_saver_destroy(NULL);
}

/* NaN and Inf are found before anything is published, wherever they are, and named with their
 * place. */
static void test_not_finite(void **state) {
    static const struct {
        float value;
        const char *text;
    } bad[] = {{NAN, "NaN"}, {INFINITY, "Inf"}, {-INFINITY, "Inf"}};
    static float values[700][900];
    const int64_t rows[] = {0, 333, 699}, columns[] = {0, 17, 899};
    xp_ckpt_piece piece = {
        .name = "param/embed", .dtype = XP_F32, .n_dims = 2, .shape = {1400, 900}, .data = values};
    piece.n = 700 * 900;
    xp_ckpt_piece rest = piece;
    rest.first = piece.n;
    static float others[700][900];
    rest.data = others;
    const xp_ckpt_piece pieces[] = {piece, rest};
    xp_ckpt_save_args args = {.folder = *state, .step = 1, .pieces = pieces, .n_pieces = 2};
    assert_int_equal(xp_ckpt_save(&args), XP_OK);
    args.step = 2;
    for (int i = 0; i < 27; i++) {
        int64_t row = rows[i % 3], column = columns[i / 3 % 3];
        char place[64];
        others[row][column] = bad[i / 9].value;
        assert_int_equal(xp_ckpt_save(&args), XP_ENUMERIC);
        snprintf(place, sizeof place, "'param/embed' holds %s at [%d, %d]", bad[i / 9].text,
                 (int)row + 700, (int)column);
        assert_true(xp_scratch_error_has("checkpoint of step 2"));
        assert_true(xp_scratch_error_has(place));
        assert_int_equal(xp_scratch_count(*state), 1);
        others[row][column] = 3.4e38F; /* the largest numbers are numbers */
    }
    assert_int_equal(xp_ckpt_save(&args), XP_OK);
}

static void test_staging_bytes(void **state) {
    assert_non_null(*state);
    const xp_ckpt_piece pieces[] = {{.dtype = XP_F32, .n = 1}, {.dtype = XP_I64, .n = 8}, {.n = 0}};
    assert_int_equal(xp_ckpt_staging_bytes(pieces, 3), 128);
    assert_int_equal(xp_ckpt_staging_bytes(NULL, 0), 0);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, xp_scratch_setup, xp_scratch_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_one_rank),   TEST(test_four_ranks),        TEST(test_failure_of_one_rank),
        TEST(test_lost_rank),  TEST(test_destroy_in_flight), TEST(test_staging_bytes),
        TEST(test_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
