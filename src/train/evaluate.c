#include "train/evaluate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define COPY_VALUES ((int64_t)1 << 20)

/* In pieces through host memory: they may lie on a GPU. */
static xp_status write_logits(const xp_evaluate_args *args, int64_t n_values) {
    const float *logits = xp_model_logits(args->inference->model);
    xp_stream *stream = args->inference->stream;
    if (args->logits == NULL)
        return XP_OK;
    float *buffer = malloc((size_t)COPY_VALUES * sizeof *buffer);
    xp_status status = buffer ? XP_OK : xp_error(XP_ENOMEM, "no memory to write the logits");
    for (int64_t done = 0, n; done < n_values && status == XP_OK; done += n) {
        n = n_values - done < COPY_VALUES ? n_values - done : COPY_VALUES;
        status = xp_copy(stream, buffer, logits + done, (size_t)n * sizeof *buffer);
        if (status == XP_OK)
            status = xp_stream_sync(stream);
        if (status == XP_OK && fwrite(buffer, sizeof *buffer, (size_t)n, args->logits) != (size_t)n)
            status = xp_error(XP_EIO, "cannot write the logits: %s", strerror(errno));
    }
    free(buffer);
    return status;
}

/* Rows [first, first + n) through the model. */
static xp_status evaluate_batch(const xp_evaluate_args *args, int64_t first, int64_t n,
                                int32_t *memory, double *loss_sum, int64_t *n_valid) {
    int64_t seq_len = xp_dataset_seq_len(args->dataset), room = args->n_rows * seq_len;
    for (int64_t i = 0; i < n; i++) {
        int32_t *at = memory + i * seq_len;
        XP_TRY(
            xp_dataset_row(args->dataset, first + i, at, at + room, at + 2 * room, at + 3 * room));
    }
    xp_model_batch batch = {.n_rows = n,
                            .seq_len = seq_len,
                            .tokens = memory,
                            .targets = memory + room,
                            .positions = memory + 2 * room,
                            .doc_start = memory + 3 * room,
                            .loss_scale = 1.0F,
                            .want_logits = args->logits != NULL};
    xp_inference *inf = args->inference;
    xp_model_loss loss;
    XP_TRY(xp_model_forward(inf->model, &batch, inf->stream));
    XP_TRY(xp_model_read_loss(inf->model, inf->stream, &loss));
    *loss_sum += loss.loss_sum;
    *n_valid += loss.n_valid;
    return write_logits(args, n * seq_len * inf->arch.vocab_size);
}

xp_status xp_evaluate(const xp_evaluate_args *args, xp_evaluation *evaluation) {
    int64_t n_rows = xp_dataset_n_rows(args->dataset);
    if (args->max_rows >= 0 && args->max_rows < n_rows)
        n_rows = args->max_rows;
    int64_t seq_len = xp_dataset_seq_len(args->dataset);
    int32_t *memory = malloc((size_t)(4 * args->n_rows * seq_len) * sizeof *memory);
    if (memory == NULL)
        return xp_error(XP_ENOMEM, "no memory for a batch");
    double loss_sum = 0;
    int64_t n_valid = 0;
    xp_status status = XP_OK;
    for (int64_t done = 0; done < n_rows && status == XP_OK; done += args->n_rows) {
        int64_t n = n_rows - done < args->n_rows ? n_rows - done : args->n_rows;
        status = evaluate_batch(args, done, n, memory, &loss_sum, &n_valid);
        if (status == XP_OK && args->progress != NULL)
            args->progress(args->context, done + n, n_rows);
    }
    free(memory);
    XP_TRY(status);
    *evaluation = (xp_evaluation){.loss = n_valid > 0 ? loss_sum / (double)n_valid : 0.0,
                                  .n_tokens = n_valid,
                                  .n_rows = n_rows};
    return XP_OK;
}
