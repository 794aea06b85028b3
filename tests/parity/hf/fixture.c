#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>

#include "fixture.h"

void must(xp_status status) {
    if (status != XP_OK)
        fail_msg("%s: %s", xp_status_name(status), xp_last_error());
}

void fixture_path(char *path, size_t n, const char *name, const char *file) {
    snprintf(path, n, "%s/%s/%s", parity_opts.fixtures, name, file);
}

const xp_st_tensor *recorded(const parity *p, const char *name) {
    const xp_st_tensor *tensor = xp_st_find(p->record, name);
    assert_non_null(tensor);
    return tensor;
}

void open_parity(const char *name, xp_dtype dtype, parity *p) {
    char path[512];
    p->name = name;
    p->dtype = dtype;
    fixture_path(path, sizeof path, name, "config.json");
    must(xp_arch_from_hf(path, &p->arch));
    fixture_path(path, sizeof path, name, "");
    must(xp_hf_open(path, &p->weights));
    fixture_path(path, sizeof path, name, "grads.safetensors");
    must(xp_hf_open(path, &p->grads));
    fixture_path(path, sizeof path, name, "record.safetensors");
    must(xp_st_open(path, &p->record));
    const xp_st_tensor *rows = recorded(p, "tokens");
    assert_int_equal(rows->shape[0], N_STEPS);
    p->n_rows = rows->shape[1];
    p->seq_len = rows->shape[2] - 1;
    p->rows = rows->data;
    size_t n = (size_t)(p->n_rows * p->seq_len);
    p->tokens = malloc(n * sizeof(int32_t));
    p->targets = malloc(n * sizeof(int32_t));
    p->positions = malloc(n * sizeof(int32_t));
    must(xp_device_create(&parity_opts.device, &p->device));
    must(xp_stream_create(p->device, XP_STREAM_COMPUTE, &p->stream));
}

void close_parity(parity *p) {
    xp_stream_destroy(p->stream);
    xp_device_destroy(p->device);
    xp_hf_close(p->weights);
    xp_hf_close(p->grads);
    xp_st_close(p->record);
    free(p->tokens);
    free(p->targets);
    free(p->positions);
}

/* A recorded tensor to the device, in the model's type. */
static void put_values(const parity *p, const xp_st_tensor *tensor, void *home) {
    size_t n = (size_t)tensor->n_elements;
    float *values = malloc(n * sizeof *values);
    uint16_t *narrow = malloc(n * sizeof *narrow);
    must(xp_st_read_f32(tensor, 0, tensor->n_elements, values));
    for (size_t i = 0; i < n; i++)
        narrow[i] = xp_bf16_from_f32(values[i]);
    bool wide = p->dtype == XP_F32;
    must(xp_copy(p->stream, home, wide ? (void *)values : (void *)narrow,
                 n * xp_dtype_bytes(p->dtype)));
    must(xp_stream_sync(p->stream));
    free(values);
    free(narrow);
}

float *get_values(const parity *p, const void *home, int64_t n, xp_dtype dtype) {
    float *values = malloc((size_t)n * sizeof *values);
    uint16_t *narrow = malloc((size_t)n * sizeof *narrow);
    bool wide = dtype == XP_F32;
    must(xp_copy(p->stream, wide ? (void *)values : (void *)narrow, home,
                 (size_t)n * xp_dtype_bytes(dtype)));
    must(xp_stream_sync(p->stream));
    for (int64_t i = 0; i < n && !wide; i++)
        values[i] = xp_bf16_to_f32(narrow[i]);
    free(narrow);
    return values;
}

xp_model *make_model(const parity *p, xp_recompute recompute, bool inference) {
    xp_model *model;
    xp_model_args args = {.arch = &p->arch,
                          .n_rows = p->n_rows,
                          .seq_len = p->seq_len,
                          .dtype = p->dtype,
                          .grad_dtype = p->dtype,
                          .recompute = recompute,
                          .inference = inference,
                          .keep_logits = inference,
                          .ep = {.capacity_factor = 2.0},
                          .device = p->device};
    must(xp_model_create(&args, &model));
    const xp_param_table *table = xp_model_params(model);
    char *params = xp_model_param_data(model);
    int64_t n_read = 0;
    for (int i = 0; i < xp_param_table_n_params(table); i++)
        for (int s = 0; s < xp_param_table_param(table, i)->n_slices; s++) {
            xp_param_slice slice;
            xp_param_table_slice(table, i, s, &slice);
            const xp_st_tensor *tensor = xp_hf_find(p->weights, slice.hf_name);
            if (tensor == NULL)
                fail_msg("transformers wrote no %s", slice.hf_name);
            assert_int_equal(tensor->n_elements, slice.n_elements);
            char *home = params + slice.offset * (int64_t)xp_dtype_bytes(p->dtype);
            put_values(p, tensor, home);
            n_read++;
        }
    assert_int_equal(n_read, xp_hf_n_tensors(p->weights));
    return model;
}

xp_model_batch batch_of(const parity *p, int step) {
    for (int64_t b = 0; b < p->n_rows; b++)
        for (int64_t s = 0; s < p->seq_len; s++) {
            const int64_t *row = p->rows + (step * p->n_rows + b) * (p->seq_len + 1);
            int64_t at = b * p->seq_len + s;
            p->tokens[at] = (int32_t)row[s];
            p->targets[at] = (int32_t)row[s + 1];
            p->positions[at] = (int32_t)s;
        }
    return (xp_model_batch){.n_rows = p->n_rows,
                            .seq_len = p->seq_len,
                            .tokens = p->tokens,
                            .targets = p->targets,
                            .positions = p->positions,
                            .loss_scale = 1.0F / (float)(p->n_rows * p->seq_len)};
}

double mean_loss(const parity *p, xp_model *model) {
    xp_model_loss loss;
    must(xp_model_read_loss(model, p->stream, &loss));
    assert_int_equal(loss.n_valid, p->n_rows * p->seq_len);
    return loss.loss_sum / (double)loss.n_valid;
}

void open_run(const parity *p, xp_recompute recompute, parity_run *run) {
    *run = (parity_run){
        .mesh = {.n_replicate = 1, .n_shard = 1, .ep_size = 1, .n_expert_shard = 1, .n_ranks = 1}};
    run->model = make_model(p, recompute, false);
    xp_shard_args args = {.table = xp_model_params(run->model),
                          .mesh = &run->mesh,
                          .device = p->device,
                          .params = xp_model_param_data(run->model),
                          .grads = xp_model_grad_data(run->model),
                          .param_dtype = p->dtype,
                          .grad_dtype = p->dtype};
    must(xp_shard_create(&args, &run->shard));
    must(xp_shard_adopt_params(run->shard, p->stream));
}

void close_run(parity_run *run) {
    xp_shard_destroy(run->shard);
    xp_model_destroy(run->model);
}

double update_run(const parity *p, parity_run *run, int step) {
    const int n_groups = xp_param_table_n_groups(xp_model_params(run->model));
    for (int group = 0; group < n_groups; group++)
        must(xp_shard_group_ready(run->shard, group, p->stream));
    must(xp_shard_finish_reduce(run->shard, p->stream));
    double norm;
    must(xp_shard_queue_norm(run->shard, p->stream));
    xp_adam_step adam = {.lr = 1e-3F,
                         .beta1 = 0.9F,
                         .beta2 = 0.95F,
                         .eps = 1e-8F,
                         .weight_decay = 0.1F,
                         .step = step + 1,
                         .max_norm = 1.0};
    must(xp_shard_update(run->shard, &adam, p->stream));
    must(xp_shard_finish_gather(run->shard, p->stream));
    must(xp_stream_sync(p->stream));
    must(xp_shard_read_norm(run->shard, p->stream, &norm));
    return norm;
}
