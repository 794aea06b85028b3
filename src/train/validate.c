#include <math.h>
#include "train/run_state.h"

/* Rows that every rank can read the same number of times: whole rounds over all ranks. */
static int64_t n_rounds(const xp_trainer *t) {
    int64_t each = t->run.validation_batch * t->n_ranks;
    int64_t rounds = xp_dataset_n_rows(t->shared->validation) / each;
    int64_t asked = t->config->validation.steps;
    return asked > 0 && asked < rounds ? asked : rounds;
}

static xp_status read_rows(xp_trainer *t, int64_t first_row, xp_model_batch *batch) {
    int64_t n = batch->n_rows * batch->seq_len;
    int32_t *tokens = t->validation_memory;
    for (int64_t j = 0; j < batch->n_rows; j++) {
        int64_t at = j * batch->seq_len;
        XP_TRY(xp_dataset_row(t->shared->validation, first_row + j, tokens + at, tokens + n + at,
                              tokens + 2 * n + at, tokens + 3 * n + at));
    }
    batch->tokens = tokens;
    batch->targets = tokens + n;
    batch->positions = tokens + 2 * n;
    batch->doc_start = t->run.document_attention ? tokens + 3 * n : NULL;
    return XP_OK;
}

xp_status xp_trainer_validate(xp_trainer *t, double *loss) {
    int64_t rounds = n_rounds(t);
    if (rounds == 0)
        return xp_error(XP_ECONFIG,
                        "the validation data has %lld rows of %lld tokens, fewer than "
                        "validation.local_batch_size %lld x %d ranks",
                        (long long)xp_dataset_n_rows(t->shared->validation),
                        (long long)t->run.validation_seq_len, (long long)t->run.validation_batch,
                        t->n_ranks);
    double sums[2] = {0, 0};
    XP_TRY(xp_shard_finish_gather(t->run.shard, t->run.stream));
    for (int64_t k = 0; k < rounds; k++) {
        xp_model_batch batch = {
            .n_rows = t->run.validation_batch,
            .seq_len = t->run.validation_seq_len,
            .loss_scale = 1,
        };
        xp_model_loss part;
        XP_TRY(read_rows(t, (k * t->n_ranks + t->rank) * batch.n_rows, &batch));
        XP_TRY(xp_model_forward(t->run.model, &batch, t->run.stream));
        XP_TRY(xp_model_read_loss(t->run.model, t->run.stream, &part));
        sums[0] += part.loss_sum;
        sums[1] += (double)part.n_valid;
    }
    if (t->world) {
        xp_comm_set_phase(t->world, "validation");
        XP_TRY(xp_comm_all_reduce(t->world, sums, sums, 2, XP_F64, XP_SUM, NULL));
    }
    *loss = sums[1] > 0 ? sums[0] / sums[1] : NAN;
    return XP_OK;
}
