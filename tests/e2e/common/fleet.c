#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "fleet.h"
#include "tokens.h"

#define MAX_WORDS 128
#define TIMEOUT_S 60

/* ---- ranks as threads -------------------------------------------------------------------- */

typedef struct fleet_rank {
    const fleet_args *args;
    const xp_config_set *set;
    xp_train_shared *shared;
    xp_thread_world *world; /* NULL: one rank */
    pthread_t thread;
    int rank;
    xp_status status;
    char error[1024];
} fleet_rank;

static xp_status use_trainer(const fleet_rank *r, xp_trainer *t) {
    if (!r->args->not_started)
        XP_TRY(xp_trainer_start(t));
    return r->args->body(t, r->args->context);
}

static xp_status run_rank(fleet_rank *r) {
    xp_comm *comm = NULL;
    xp_trainer *t = NULL;
    if (r->world)
        XP_TRY(xp_thread_world_comm(r->world, r->rank, &comm));
    xp_status status = xp_trainer_open(r->set, r->shared, comm, r->args->n_ranks, NULL, &t);
    if (status == XP_OK) {
        status = use_trainer(r, t);
        if (status != XP_OK && comm)
            xp_comm_abort(comm, NULL);
        xp_trainer_close(t);
    }
    xp_comm_destroy(comm);
    return status;
}

static void *rank_main(void *context) {
    fleet_rank *r = context;
    r->status = run_rank(r);
    if (r->status != XP_OK)
        snprintf(r->error, sizeof r->error, "%s", xp_last_error());
    return NULL;
}

/* An error of its own before reports that another rank is gone. */
static xp_status first_error(const fleet_rank *ranks, int n) {
    const fleet_rank *cause = NULL;
    for (int i = 0; i < n; i++)
        if (ranks[i].status != XP_OK && (!cause || cause->status == XP_ECOMM))
            cause = &ranks[i];
    return cause ? xp_error(cause->status, "rank %d: %s", cause->rank, cause->error) : XP_OK;
}

static xp_status run_ranks(const fleet_args *args, const xp_config_set *set,
                           xp_train_shared *shared) {
    xp_thread_world *world = NULL;
    int n = args->n_ranks;
    if (n > 1)
        XP_TRY(xp_thread_world_create(n, TIMEOUT_S, &world));
    fleet_rank *ranks = calloc((size_t)n, sizeof *ranks);
    assert_non_null(ranks);
    for (int i = 0; i < n; i++) {
        ranks[i] =
            (fleet_rank){.args = args, .set = set, .shared = shared, .world = world, .rank = i};
        assert_int_equal(pthread_create(&ranks[i].thread, NULL, rank_main, &ranks[i]), 0);
    }
    for (int i = 0; i < n; i++)
        pthread_join(ranks[i].thread, NULL);
    xp_status status = first_error(ranks, n);
    free(ranks);
    xp_thread_world_destroy(world);
    return status;
}

static xp_status load_config(const char *options, xp_config_set **set) {
    char *words = strdup(options);
    assert_non_null(words);
    char *argv[MAX_WORDS];
    int argc = 0;
    for (char *at = words, *word; (word = strsep(&at, " ")) != NULL;) {
        assert_true(argc < MAX_WORDS);
        if (word[0])
            argv[argc++] = word;
    }
    xp_status status = xp_config_load(argc, argv, false, set);
    free(words);
    return status;
}

xp_status fleet_run(const fleet_args *args) {
    xp_config_set *set = NULL;
    xp_train_shared *shared = NULL;
    XP_TRY(load_config(args->options, &set));
    xp_status status = xp_train_shared_create(xp_config_get(set), NULL, &shared);
    if (status == XP_OK)
        status = run_ranks(args, set, shared);
    xp_train_shared_destroy(shared);
    xp_config_destroy(set);
    return status;
}

/* ---- what ranks hold --------------------------------------------------------------------- */

static xp_status put(tensor_set *set, const char *name, int64_t total, int64_t first, int64_t n,
                     const float *data) {
    return tensor_set_put(set, name, total, first, n, data)
               ? XP_OK
               : xp_error(XP_EINTERNAL, "%s: elements %lld + %lld of %lld do not fit", name,
                          (long long)first, (long long)n, (long long)total);
}

static xp_status put_slice(const xp_param_slice *slice, const xp_shard_chunk *chunk,
                           tensor_set *set) {
    int64_t begin = slice->offset > chunk->first ? slice->offset : chunk->first;
    int64_t end = slice->offset + slice->n_elements;
    if (end > chunk->first + chunk->n)
        end = chunk->first + chunk->n;
    if (end <= begin)
        return XP_OK;
    const float *grad = chunk->grad;
    return put(set, slice->hf_name, slice->n_elements, begin - slice->offset, end - begin,
               grad + (begin - chunk->first));
}

xp_status fleet_collect_gradients(const xp_trainer *t, tensor_set *set) {
    const xp_param_table *table = xp_model_params(t->run.model);
    assert_int_equal(t->run.grad_dtype, XP_F32);
    if (!xp_shard_is_writer(t->run.shard))
        return XP_OK;
    for (int p = 0; p < xp_param_table_n_params(table); p++) {
        const xp_param *param = xp_param_table_param(table, p);
        xp_shard_chunk chunk = xp_shard_get_chunk(t->run.shard, param->group);
        for (int i = 0; i < param->n_slices; i++) {
            xp_param_slice slice;
            xp_param_table_slice(table, p, i, &slice);
            XP_TRY(put_slice(&slice, &chunk, set));
        }
    }
    return XP_OK;
}

xp_status fleet_collect_state(const xp_trainer *t, tensor_set *set) {
    const xp_ckpt_piece *pieces = NULL;
    int64_t n = 0;
    XP_TRY(xp_snapshot_collect(t->snapshot, XP_SNAPSHOT_ALL, &pieces, &n));
    for (int64_t i = 0; i < n; i++) {
        int64_t total = 1;
        for (int d = 0; d < pieces[i].n_dims; d++)
            total *= pieces[i].shape[d];
        XP_TRY(put(set, pieces[i].name, total, pieces[i].first, pieces[i].n, pieces[i].data));
    }
    return XP_OK;
}

/* ---- a whole training -------------------------------------------------------------------- */

static xp_status record_steps(xp_trainer *t, void *context) {
    fleet_record *record = context;
    for (int s = 0; s < record->n_steps; s++) {
        xp_step_record step;
        XP_TRY(xp_trainer_step(t, &step));
        if (t->rank == 0) {
            record->losses[s] = step.loss;
            record->norms[s] = step.grad_norm;
        }
        if (s == 0)
            XP_TRY(fleet_collect_gradients(t, &record->gradients));
    }
    return fleet_collect_state(t, &record->state);
}

void fleet_train(int n_ranks, const char *options, int n_steps, fleet_record *record) {
    assert_true(n_steps <= FLEET_MAX_STEPS);
    memset(record, 0, sizeof *record);
    record->n_steps = n_steps;
    tensor_set_init(&record->gradients);
    tensor_set_init(&record->state);
    fleet_args args = {
        .n_ranks = n_ranks, .options = options, .body = record_steps, .context = record};
    if (fleet_run(&args) != XP_OK)
        fail_msg("%d ranks, %s: %s", n_ranks, options, xp_last_error());
    assert_true(tensor_set_complete(&record->gradients));
    assert_true(tensor_set_complete(&record->state));
}

void fleet_record_free(fleet_record *record) {
    tensor_set_free(&record->gradients);
    tensor_set_free(&record->state);
}

char *fleet_make_data(long n, unsigned vocab) {
    char folder[] = "/tmp/expar_fleet_XXXXXX";
    if (!mkdtemp(folder))
        return NULL;
    char *path = xp_path_join(folder, "tokens.bin");
    bool made = path && tokens_write(path, n, vocab);
    free(path);
    return made ? strdup(folder) : NULL;
}

double fleet_loss_distance(const fleet_record *a, const fleet_record *b, int first, int last) {
    double most = 0;
    for (int s = first - 1; s < last; s++) {
        double d = fabs(a->losses[s] - b->losses[s]) / fabs(a->losses[s]);
        most = d <= most ? most : d;
    }
    return most;
}
