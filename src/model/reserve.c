/* Making a model: every byte is counted, reserved and handed out here, before the first pass. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "device/device_internal.h"
#include "model/model_internal.h"
#include "model/pass_graph.h"

/* A chunk of logits: on the CPU it should stay in the last cache. On a GPU its rows should fill whole
 * waves of tiles: thousands, 2048 for a vocabulary of 152 thousand, 4096 with large_head. */
static const int64_t chunk_bytes_cpu = (int64_t)16 << 20;
static const int64_t chunk_bytes_gpu = (int64_t)640 << 20, chunk_bytes_large = (int64_t)1280 << 20;
static const int64_t least_chunk_rows = 64, gpu_chunk_rows = 1024;

static int64_t max_tokens(const xp_model *model) {
    return model->args.n_rows * model->args.seq_len;
}

static int64_t largest(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static int64_t choose_chunk(const xp_model *model) {
    bool gpu = xp_device_like(model->device) == XP_DEVICE_CUDA;
    int64_t row = model->arch.vocab_size * (int64_t)xp_dtype_bytes(model->args.dtype);
    int64_t rows = chunk_bytes_cpu / row;
    if (gpu) {
        rows = (model->args.large_head ? chunk_bytes_large : chunk_bytes_gpu) / row;
        rows -= rows > gpu_chunk_rows ? rows % gpu_chunk_rows : 0;
    }
    rows = largest(rows, least_chunk_rows);
    return rows < max_tokens(model) ? rows : max_tokens(model);
}

/* For batches of the largest size, with documents where they are attended to: others make do. */
static size_t attention_scratch(const xp_model *model) {
    static const int32_t some_start = 0; /* not read */
    const xp_arch *arch = &model->arch;
    const int64_t q = (int64_t)arch->n_heads * arch->head_dim;
    const int64_t kv = (int64_t)arch->n_kv_heads * arch->head_dim;
    const xp_attention_args args = {.n_rows = model->args.n_rows,
                                    .seq_len = model->args.seq_len,
                                    .n_heads = arch->n_heads,
                                    .n_kv_heads = arch->n_kv_heads,
                                    .head_dim = arch->head_dim,
                                    .scale = xp_attention_scale(arch),
                                    .ldq = q,
                                    .ldk = kv,
                                    .ldv = q + 2 * kv,
                                    .ldo = q,
                                    .doc_start =
                                        model->args.document_attention ? &some_start : NULL,
                                    .dtype = model->args.dtype};
    size_t forward = model->ops->attention_scratch(model->device, &args, false);
    if (model->args.inference)
        return forward;
    size_t backward = model->ops->attention_scratch(model->device, &args, true);
    return forward > backward ? forward : backward;
}

static size_t logits_bytes(const xp_model *model) {
    return (size_t)(model->chunk_rows * model->arch.vocab_size) * xp_dtype_bytes(model->args.dtype);
}

/* What both directions need. */
static void carve_forward(xp_model *model, xp_slab *slab) {
    xp_model_work *w = &model->work;
    const xp_arch *arch = &model->arch;
    const size_t tokens = (size_t)max_tokens(model), element = xp_dtype_bytes(model->args.dtype);
    const size_t row = (size_t)arch->dim * element, head = (size_t)arch->head_dim * element;
    const size_t vocab = (size_t)arch->vocab_size, f32 = sizeof(float), i32 = sizeof(int32_t);
    w->tokens = xp_slab_take(slab, tokens * i32);
    w->targets = xp_slab_take(slab, tokens * i32);
    w->positions = xp_slab_take(slab, tokens * i32);
    w->doc_start = model->args.document_attention ? xp_slab_take(slab, tokens * i32) : NULL;
    w->loss_scale = xp_slab_take(slab, f32);
    w->losses = xp_slab_take(slab, XP_MODEL_N_LOSSES * sizeof(double));
    w->token_loss = xp_slab_take(slab, tokens * f32);
    w->rope = xp_slab_take(slab, (size_t)(model->args.seq_len * arch->head_dim) * f32);
    w->normed = xp_slab_take(slab, tokens * row);
    w->branch = xp_slab_take(slab, tokens * row);
    w->q = xp_slab_take(slab, tokens * (size_t)arch->n_heads * head);
    w->k = xp_slab_take(slab, tokens * (size_t)arch->n_kv_heads * head);
    w->final_input = xp_slab_take(slab, tokens * row);
    w->final_rstd = xp_slab_take(slab, tokens * f32);
    if (!model->core)
        w->h = xp_slab_take(slab, tokens * (size_t)arch->hidden_dim * element);
    if (model->args.inference)
        w->logits = xp_slab_take(slab, logits_bytes(model));
    if (model->args.keep_logits)
        w->all_logits = xp_slab_take(slab, tokens * vocab * f32);
    size_t scratch = attention_scratch(model);
    w->attention_scratch = scratch > 0 ? xp_slab_take(slab, scratch) : NULL;
    w->attention_scratch_bytes = scratch;
}

/* Logits are gone before the first layer's attention backward begins: the two use the same memory. */
static void carve_either(xp_model *model, xp_slab *slab) {
    xp_model_work *w = &model->work;
    const xp_arch *arch = &model->arch;
    const size_t tokens = (size_t)max_tokens(model);
    const size_t head = (size_t)arch->head_dim * xp_dtype_bytes(model->args.dtype);
    const size_t q = (size_t)arch->n_heads * head, kv = (size_t)arch->n_kv_heads * head;
    const size_t begin = slab->used;
    w->logits = xp_slab_take(slab, logits_bytes(model));
    const size_t behind_logits = slab->used;
    slab->used = begin;
    w->dq = xp_slab_take(slab, tokens * q);
    w->dk = xp_slab_take(slab, tokens * kv);
    w->dqkv = xp_slab_take(slab, tokens * (q + 2 * kv));
    w->d_attention = xp_slab_take(slab, tokens * q);
    slab->used = slab->used > behind_logits ? slab->used : behind_logits;
}

static void carve_backward(xp_model *model, xp_slab *slab) {
    xp_model_work *w = &model->work;
    const xp_arch *arch = &model->arch;
    const int64_t n = max_tokens(model);
    const size_t tokens = (size_t)n, element = xp_dtype_bytes(model->args.dtype);
    const size_t row = (size_t)arch->dim * element;
    w->d_residual = xp_slab_take(slab, tokens * row);
    w->d_normed = xp_slab_take(slab, tokens * row);
    carve_either(model, slab);
    int64_t norm = largest(xp_rmsnorm_scratch(n, arch->dim), xp_qknorm_scratch(n, arch->head_dim));
    w->norm_scratch = xp_slab_take(slab, (size_t)norm * sizeof(float));
    if (model->args.large_head && model->args.grad_dtype == XP_BF16 && model->chunk_rows < n)
        w->head_grad = xp_slab_take(slab, (size_t)(arch->vocab_size * arch->dim) * sizeof(float));
    w->embed_scratch = xp_slab_take(slab, (size_t)(n + arch->vocab_size + 1) * sizeof(int32_t));
}

static void carve_workspace(xp_model *model, xp_slab *slab) {
    carve_forward(model, slab);
    if (!model->args.inference)
        carve_backward(model, slab);
}

static xp_weight weight_of(const xp_model *model, int64_t layer, const char *name) {
    const int i = xp_param_table_find_in(model->table, layer, name);
    if (i < 0)
        return (xp_weight){0};
    int64_t offset = xp_param_table_param(model->table, i)->offset;
    return (xp_weight){
        .data = xp_offset(model->params, offset, model->args.dtype),
        .grad = model->grads ? xp_offset(model->grads, offset, model->args.grad_dtype) : NULL};
}

static void bind_layer(xp_model *model, int index) {
    xp_layer *layer = &model->layers[index];
    layer->input_norm = weight_of(model, index, "input_norm");
    layer->wqkv = weight_of(model, index, "wqkv");
    layer->q_norm = weight_of(model, index, "q_norm");
    layer->k_norm = weight_of(model, index, "k_norm");
    layer->wo = weight_of(model, index, "wo");
    layer->post_norm = weight_of(model, index, "post_norm");
    layer->w13 = weight_of(model, index, "w13");
    layer->w2 = weight_of(model, index, "w2");
    if (model->arch.n_experts == 0)
        return;
    xp_weight gate = weight_of(model, index, "gate");
    xp_weight w13 = weight_of(model, index, "experts.w13");
    xp_weight w2 = weight_of(model, index, "experts.w2");
    layer->moe = (xp_moe_weights){.gate = gate.data,
                                  .w13 = w13.data,
                                  .w2 = w2.data,
                                  .d_gate = gate.grad,
                                  .d_w13 = w13.grad,
                                  .d_w2 = w2.grad,
                                  .bias = model->bias + (int64_t)index * model->arch.n_experts};
    layer->saved.scores = xp_acts_get(&model->acts, index, XP_ACT_SCORES);
    layer->saved.topk_idx = xp_acts_get(&model->acts, index, XP_ACT_TOPK_IDX);
    layer->saved.topk_weight = xp_acts_get(&model->acts, index, XP_ACT_TOPK_WEIGHT);
    layer->saved.router_lse = xp_acts_get(&model->acts, index, XP_ACT_ROUTER_LSE);
    layer->saved.aux_density = xp_acts_get(&model->acts, index, XP_ACT_AUX_DENSITY);
}

static void bind(xp_model *model) {
    model->embed = weight_of(model, -1, "embed");
    model->final_norm = weight_of(model, -1, "final_norm");
    model->lm_head = weight_of(model, -1, "lm_head");
    for (int i = 0; i < model->arch.n_layers; i++) {
        bind_layer(model, i);
        model->layers[i].dense_group = model->layers[i].expert_group = -1;
    }
    for (int g = 0; g < xp_param_table_n_groups(model->table); g++) {
        const xp_param_group *group = xp_param_table_group(model->table, g);
        if (group->layer < 0)
            model->embed_group = g;
        else if (group->layer == model->arch.n_layers)
            model->head_group = g;
        else if (group->is_expert)
            model->layers[group->layer].expert_group = g;
        else
            model->layers[group->layer].dense_group = g;
    }
}

/* Parameters, gradients, activations, balance state, workspace. */
static xp_status reserve(xp_model *model) {
    const xp_model_args *args = &model->args;
    const xp_arch *arch = &model->arch;
    size_t n = (size_t)xp_param_table_n_elements(model->table);
    XP_TRY(
        xp_device_alloc(model->device, n * xp_dtype_bytes(args->dtype), "params", &model->params));
    model->grads = model->core ? xp_moe_core_grads(model->core) : NULL;
    if (!args->inference && !model->grads) {
        XP_TRY(xp_device_alloc(model->device, n * xp_dtype_bytes(args->grad_dtype), "grads",
                               &model->own_grads));
        model->grads = model->own_grads;
    }
    if (arch->n_experts > 0) {
        size_t entries = (size_t)(arch->n_layers * arch->n_experts);
        XP_TRY(xp_device_alloc(model->device, entries * (sizeof(float) + sizeof(int64_t)), "params",
                               &model->balance));
        model->counts = model->balance;
        model->bias = (float *)(model->counts + entries);
    }
    XP_TRY(xp_acts_create(args, &model->acts));
    xp_slab count = {0};
    xp_acts_carve(&model->acts, args, &count);
    XP_TRY(xp_device_alloc(model->device, count.used, "activations", &model->activations));
    xp_slab slab = {.base = model->activations, .n_bytes = count.used};
    xp_acts_carve(&model->acts, args, &slab);
    count = (xp_slab){0};
    carve_workspace(model, &count);
    XP_TRY(xp_device_alloc(model->device, count.used, "workspace", &model->workspace));
    slab = (xp_slab){.base = model->workspace, .n_bytes = count.used};
    carve_workspace(model, &slab);
    void *staged = NULL;
    XP_TRY(xp_host_alloc(model->device, sizeof(xp_model_staged), "workspace", &staged));
    model->staged = staged;
    for (int i = 0; i < XP_MODEL_SCALE_SLOTS; i++)
        XP_TRY(xp_event_create(model->device, &model->scale_copied[i]));
    return XP_OK;
}

static xp_status create_core(xp_model *model, int n_ranks) {
    const xp_model_args *args = &model->args;
    const xp_arch *arch = &model->arch;
    if (arch->n_experts == 0)
        return XP_OK;
    bool keep_all = args->recompute == XP_RECOMPUTE_NONE;
    xp_spent_rows grads = {0};
    if (args->reuse_for_grads && !args->inference)
        XP_TRY(xp_spent_rows_create(arch, model->table, args->grad_dtype, &grads));
    xp_moe_core_args core = {.max_tokens = max_tokens(model),
                             .dim = arch->dim,
                             .moe_dim = arch->moe_dim,
                             .n_experts = arch->n_experts,
                             .top_k = arch->top_k,
                             .n_layers = (int)arch->n_layers,
                             .score_func = arch->score_func,
                             .route_norm = arch->route_norm,
                             .route_scale = arch->route_scale,
                             .dtype = args->dtype,
                             .grad_dtype = args->grad_dtype,
                             .inference = args->inference,
                             .save_gate_up = keep_all,
                             .save_recv = xp_saves_recv(args->recompute, args->save_dispatched),
                             .saved_rows_factor = args->saved_rows_factor,
                             .grads = &grads,
                             .forced = args->forced_balance,
                             .overlap = args->overlap,
                             .overlap_split = args->overlap_split,
                             .overlap_sms = args->overlap_sms,
                             .aux_coeff = args->aux_loss_coeff,
                             .z_coeff = args->z_loss_coeff,
                             .ep = args->ep,
                             .comm = args->ep_comm,
                             .n_ranks = n_ranks,
                             .shares_gpus = args->shares_gpus,
                             .device = model->device};
    const xp_status status = xp_moe_core_create(&core, &model->core);
    xp_spent_rows_destroy(&grads);
    return status;
}

/* Padding, balance state and gradients start as zeros; the RoPE table never changes. */
static xp_status fill(xp_model *model) {
    if (xp_device_get_kind(model->device) == XP_DEVICE_NULL)
        return XP_OK;
    const xp_model_args *args = &model->args;
    const xp_arch *arch = &model->arch;
    size_t n = (size_t)xp_param_table_n_elements(model->table);
    size_t n_rope = (size_t)(args->seq_len * arch->head_dim);
    float *rope = malloc(n_rope * sizeof(float));
    if (!rope)
        return xp_error(XP_ENOMEM, "RoPE table: out of memory");
    xp_rope_fill((float)arch->rope_theta, arch->head_dim, args->seq_len, rope);
    xp_status status =
        xp_device_move(model->device, model->work.rope, rope, n_rope * sizeof(float));
    free(rope);
    XP_TRY(status);
    XP_TRY(xp_device_clear(model->device, model->params, n * xp_dtype_bytes(args->dtype)));
    if (model->grads)
        XP_TRY(xp_device_clear(model->device, model->grads, n * xp_dtype_bytes(args->grad_dtype)));
    if (!model->balance)
        return XP_OK;
    size_t entries = (size_t)(arch->n_layers * arch->n_experts);
    return xp_device_clear(model->device, model->balance,
                           entries * (sizeof(float) + sizeof(int64_t)));
}

static xp_status check_args(const xp_model_args *args) {
    if (args->n_rows < 1 || args->seq_len < 1 || args->n_rows > INT32_MAX / args->seq_len)
        return xp_error(XP_EINVAL,
                        "model: a microbatch of %lld rows of %lld tokens: both must be at least 1, "
                        "and their product at most %d",
                        (long long)args->n_rows, (long long)args->seq_len, INT32_MAX);
    if ((args->dtype != XP_F32 && args->dtype != XP_BF16) ||
        (args->grad_dtype != XP_F32 && args->grad_dtype != XP_BF16) ||
        (args->dtype == XP_F32 && args->grad_dtype != XP_F32))
        return xp_error(XP_EINVAL, "model: %s with %s gradients is no combination",
                        xp_dtype_name(args->dtype), xp_dtype_name(args->grad_dtype));
    if (args->ep_size > 0 && (args->ep_comm || xp_device_get_kind(args->device) != XP_DEVICE_NULL))
        return xp_error(XP_EINVAL, "model: ep_size is for the null device without a communicator");
    return XP_OK;
}

/* Everything but the arguments' copy; the caller destroys on failure. */
static xp_status build(xp_model *model) {
    const xp_model_args *args = &model->args;
    int n_ranks = args->ep_comm       ? xp_comm_size(args->ep_comm)
                  : args->ep_size > 1 ? args->ep_size
                                      : 1;
    int rank = args->ep_comm ? xp_comm_rank(args->ep_comm) : n_ranks > 1 ? args->ep_rank : 0;
    XP_TRY(xp_ops_get(model->device, &model->ops));
    /* A dense model has nothing to divide: every rank holds all of it. */
    bool moe = model->arch.n_experts > 0;
    XP_TRY(xp_param_table_create(&model->arch, moe ? rank : 0, moe ? n_ranks : 1, &model->table));
    model->layers = calloc((size_t)model->arch.n_layers, sizeof(*model->layers));
    if (!model->layers)
        return xp_error(XP_ENOMEM, "model: out of memory");
    model->chunk_rows = choose_chunk(model);
    XP_TRY(create_core(model, n_ranks));
    XP_TRY(reserve(model));
    bind(model);
    /* Without a backward one plan serves all layers, one after the other. */
    int n_plans = !moe ? 0 : args->inference ? 1 : (int)model->arch.n_layers;
    for (int i = 0; i < n_plans; i++)
        XP_TRY(xp_moe_core_layer_create(model->core, &model->layers[i].saved));
    for (int i = 1; i < model->arch.n_layers && n_plans == 1; i++)
        memcpy(model->layers[i].saved.parts, model->layers[0].saved.parts,
               sizeof(model->layers[0].saved.parts));
    return fill(model);
}

xp_status xp_model_create(const xp_model_args *args, xp_model **model) {
    XP_TRY(check_args(args));
    XP_TRY(xp_arch_check(args->arch));
    xp_model *made = calloc(1, sizeof(*made));
    if (!made)
        return xp_error(XP_ENOMEM, "model: out of memory");
    made->arch = *args->arch;
    made->args = *args;
    made->args.arch = &made->arch;
    made->device = args->device;
    xp_status status = build(made);
    if (status != XP_OK) {
        xp_model_destroy(made);
        return status;
    }
    *model = made;
    return XP_OK;
}

void xp_model_destroy(xp_model *model) {
    if (!model)
        return;
    xp_pass_graphs_destroy(model->graphs);
    xp_side_destroy(model->side_stream);
    int n_plans = !model->layers ? 0 : model->args.inference ? 1 : (int)model->arch.n_layers;
    for (int i = 0; i < n_plans; i++)
        xp_moe_core_layer_destroy(&model->layers[i].saved);
    xp_moe_core_destroy(model->core);
    xp_acts_destroy(&model->acts);
    xp_device_free(model->device, model->params);
    xp_device_free(model->device, model->own_grads);
    xp_device_free(model->device, model->balance);
    xp_device_free(model->device, model->activations);
    xp_device_free(model->device, model->workspace);
    for (int i = 0; i < XP_MODEL_SCALE_SLOTS; i++)
        xp_event_destroy(model->scale_copied[i]);
    xp_host_free(model->device, model->staged);
    xp_param_table_destroy(model->table);
    free(model->layers);
    free(model);
}
