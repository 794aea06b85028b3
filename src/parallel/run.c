#include "parallel/run.h"

#include <string.h>
#include "device/device_internal.h"
#include "device/plugin.h"
#include "ops/gemm_choice.h"
#include "ops/ops.h"

/* What driver and libraries take of a GPU beside a run: 1.03 GiB on an H200. */
static const int64_t context_bytes = (int64_t)(1.1 * (1 << 30));
/* What a faster head leaves free: it is no reason to fill a GPU to the last byte. */
static const int64_t spare_bytes = (int64_t)1 << 30;

xp_status xp_run_batch_sizes(const xp_config *config, int n_data_ranks, int64_t *n_microbatches,
                             int64_t *global_batch) {
    int64_t local = config->training.local_batch_size;
    int64_t global = config->training.global_batch_size;
    int64_t per_pass = local * n_data_ranks;
    if (local < 1)
        return xp_error(XP_ECONFIG, "training.local_batch_size is %lld; it must be at least 1",
                        (long long)local);
    if (global == -1)
        global = per_pass;
    if (global < 1 || global % per_pass != 0)
        return xp_error(XP_ECONFIG,
                        "training.global_batch_size %lld is not a multiple of "
                        "training.local_batch_size %lld x %d data ranks = %lld: choose a multiple "
                        "of %lld, or another local_batch_size",
                        (long long)global, (long long)local, n_data_ranks, (long long)per_pass,
                        (long long)per_pass);
    *n_microbatches = global / per_pass;
    *global_batch = global;
    return XP_OK;
}

bool xp_run_has_balance(const xp_config *config, const xp_arch *arch) {
    return arch->n_experts > 0 && config->moe.load_balance_coeff > 0;
}

static xp_status check_experts(const xp_arch *arch, int ep_size) {
    if (ep_size == 1)
        return XP_OK;
    if (arch->n_experts == 0)
        return xp_error(XP_ECONFIG,
                        "parallelism.expert_parallel_degree is %d, but the model \"%s\" has no "
                        "experts: set it to 1, or choose a MoE flavor",
                        ep_size, arch->flavor);
    if (arch->n_experts % ep_size != 0)
        return xp_error(XP_ECONFIG,
                        "parallelism.expert_parallel_degree %d does not divide the %d experts of "
                        "the model \"%s\": choose a divisor of %d",
                        ep_size, arch->n_experts, arch->flavor, arch->n_experts);
    return XP_OK;
}

xp_ep_transport xp_run_transport(const xp_config *config, const xp_arch *arch) {
    const char *backend = config->parallelism.expert_parallel_comm_backend;
    bool deepep = backend ? strcmp(backend, "deepep") == 0 : arch->use_deepep;
    const char *transport = config->deepep.transport;
    if (!deepep)
        return XP_EP_A2A;
    if (transport && strcmp(transport, "p2p") == 0)
        return XP_EP_P2P;
    if (transport && strcmp(transport, "a2a") == 0)
        return XP_EP_A2A;
    if (transport && strcmp(transport, "hierarchical") == 0)
        return XP_EP_HIERARCHICAL;
    return XP_EP_AUTO;
}

xp_attention_mode xp_run_attention(const xp_config *config) {
    const char *name = config->training.attention;
    return name && strcmp(name, "document") == 0 ? XP_ATTENTION_DOCUMENT : XP_ATTENTION_CAUSAL;
}

xp_recompute xp_run_recompute(const char *mode) {
    if (mode && strcmp(mode, "full") == 0)
        return XP_RECOMPUTE_FULL;
    if (mode && strcmp(mode, "selective") == 0)
        return XP_RECOMPUTE_SELECTIVE;
    return XP_RECOMPUTE_NONE;
}

xp_save_dispatched xp_run_save_dispatched(const char *name) {
    if (name && strcmp(name, "yes") == 0)
        return XP_SAVE_DISPATCHED_YES;
    if (name && strcmp(name, "no") == 0)
        return XP_SAVE_DISPATCHED_NO;
    return XP_SAVE_DISPATCHED_AUTO;
}

xp_forced_mode xp_run_forced(const xp_config *config) {
    const char *mode = config->debug.moe_force_load_balance_mode;
    if (!config->debug.moe_force_load_balance)
        return XP_FORCED_NONE;
    return mode && strcmp(mode, "spread") == 0 ? XP_FORCED_SPREAD : XP_FORCED_MODULO;
}

xp_device_kind xp_run_device_kind(const xp_config *config) {
    const char *backend = config->training.backend;
    const xp_cuda_backend *cuda;
    if (backend && strcmp(backend, "auto") != 0)
        return strcmp(backend, "cuda") == 0 ? XP_DEVICE_CUDA : XP_DEVICE_CPU;
    return xp_cuda_backend_get(&cuda) == XP_OK ? XP_DEVICE_CUDA : XP_DEVICE_CPU;
}

/* A guarded CPU stands for a GPU. */
static bool computes_on_cpu(const xp_device *device) {
    return xp_device_like(device) == XP_DEVICE_CPU &&
           (xp_device_host_accessible(device) || xp_device_get_kind(device) == XP_DEVICE_NULL);
}

static xp_status choose_dtype(const xp_config *config, const xp_device *device, xp_dtype *dtype) {
    const char *name = config->training.dtype;
    bool on_cpu = computes_on_cpu(device);
    *dtype = on_cpu ? XP_F32 : XP_BF16;
    if (name && strcmp(name, "float32") == 0)
        *dtype = XP_F32;
    if (name && strcmp(name, "bfloat16") == 0 && on_cpu)
        return xp_error(XP_ECONFIG, "training.dtype = \"bfloat16\" needs a GPU; the CPU trains in "
                                    "float32: leave training.dtype out");
    return XP_OK;
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static xp_status reserve(const xp_config *config, xp_comm *world, const xp_mesh *layout,
                         const xp_run_memory *memory, xp_run *run);

/* Whether the run takes at most `has` bytes of a GPU with these choices: counted without one. */
static xp_status fits(const xp_config *config, const xp_run *run, int64_t has, bool *yes) {
    const xp_device_args args = {.kind = XP_DEVICE_NULL, .n_threads = 1, .like = XP_DEVICE_CUDA};
    xp_mesh layout = run->mesh;
    layout.world = layout.shard = layout.replicate = layout.ep = layout.expert_shard =
        layout.expert_replicate = NULL;
    xp_device *counting = NULL;
    XP_TRY(xp_device_create(&args, &counting));
    xp_run whole = {.device = counting};
    const xp_status status = reserve(config, NULL, &layout, &run->memory, &whole);
    if (status == XP_OK) {
        *yes = xp_device_bytes(counting, NULL) <= has;
        xp_run_release(&whole);
    }
    xp_device_destroy(counting);
    return status;
}

/*
 * What a GPU's memory decides. Rows that experts over several GPUs keep for the backward pass: the
 * host does not know how many rows a layer gets, so each keeps its capacity, and nothing is computed
 * again while there is room for all layers, at last by letting gradients take the memory of spent rows; where
 * there is none, 1.25 times the balanced load. Then the head's chunks. Memory that is not known has room for all.
 */
static xp_status choose_memory(const xp_config *config, xp_run *run) {
    const double least = 1.25;
    const bool shares = run->mesh.shares_gpus;
    const int64_t has = xp_device_total_bytes(run->device) - context_bytes;
    xp_run_memory *memory = &run->memory;
    bool yes = true;
    memory->saved_rows_factor = config->moe.saved_rows_factor;
    memory->reuse_for_grads = config->activation_checkpoint.reuse_for_gradients > 0;
    if (xp_device_like(run->device) != XP_DEVICE_CUDA)
        return XP_OK;
    const bool keeps_rows =
        memory->saved_rows_factor <= 0 && run->mesh.ep_size > 1 &&
        xp_run_recompute(config->activation_checkpoint.mode) == XP_RECOMPUTE_NONE;
    const bool may_reuse = config->activation_checkpoint.reuse_for_gradients < 0;
    if ((keeps_rows || may_reuse) && has > 0 && !shares)
        XP_TRY(fits(config, run, has, &yes));
    if (!yes && may_reuse) {
        memory->reuse_for_grads = true;
        XP_TRY(fits(config, run, has, &yes));
    }
    if (keeps_rows && (shares || !yes))
        memory->saved_rows_factor = least;
    memory->large_head = !shares;
    return has <= 0 || shares ? XP_OK : fits(config, run, has - spare_bytes, &memory->large_head);
}

/* Rows and row length that hold a microbatch of training and one of validation. */
static void batch_bounds(const xp_config *config, xp_run *run, xp_model_args *args) {
    args->n_rows = run->local_batch;
    args->seq_len = run->seq_len;
    if (config->validation.enable) {
        int64_t rows = config->validation.local_batch_size;
        int64_t seq_len = config->validation.seq_len;
        run->validation_batch = rows > 0 ? rows : run->local_batch;
        run->validation_seq_len = seq_len > 0 ? seq_len : run->seq_len;
        args->n_rows = larger(args->n_rows, run->validation_batch);
        args->seq_len = larger(args->seq_len, run->validation_seq_len);
    }
}

/* Rank threads share a process's driver locks and launch in turns: their order of work stays the plain
 * one, in which no kernel of one stream waits for a peer while another stream is being filled. */
static xp_overlap overlap_of(const xp_config *config, const xp_run *run) {
    return xp_overlap_choose(config->parallelism.expert_parallel_overlap, run->mesh.ep_size,
                             !computes_on_cpu(run->device),
                             run->mesh.shares_gpus || !run->mesh.separate_processes);
}

static xp_status create_model(const xp_config *config, xp_run *run) {
    run->document_attention = xp_run_attention(config) == XP_ATTENTION_DOCUMENT;
    xp_model_args args = {
        .arch = &run->arch,
        .document_attention = run->document_attention,
        .recompute = xp_run_recompute(config->activation_checkpoint.mode),
        .forced_balance = xp_run_forced(config),
        .overlap = overlap_of(config, run),
        .overlap_split = config->deepep.overlap_split,
        .overlap_sms = (int)config->deepep.overlap_num_sms,
        .aux_loss_coeff = config->moe.aux_loss_coeff,
        .z_loss_coeff = config->moe.z_loss_coeff,
        .save_dispatched = xp_run_save_dispatched(config->moe.save_dispatched),
        .saved_rows_factor = run->memory.saved_rows_factor,
        .large_head = run->memory.large_head,
        .reuse_for_grads = run->memory.reuse_for_grads && run->n_microbatches == 1,
        .ep = {.transport = xp_run_transport(config, &run->arch),
               .capacity_factor = config->moe.capacity_factor,
               .num_sms = (int)config->deepep.num_sms,
               .send_copies = (int)config->debug.moe_send_copies,
               .separate_processes = run->mesh.separate_processes,
               .shares_gpus = run->mesh.shares_gpus,
               .on_gpu = xp_device_like(run->device) == XP_DEVICE_CUDA},
        .ep_comm = run->mesh.ep,
        .device = run->device,
    };
    if (xp_device_get_kind(run->device) == XP_DEVICE_NULL) {
        args.ep_size = run->mesh.ep_size;
        args.ep_rank = run->mesh.ep_rank;
        args.shares_gpus = run->mesh.shares_gpus;
        args.ep.n_nodes = run->mesh.ep_nodes;
    }
    batch_bounds(config, run, &args);
    XP_TRY(choose_dtype(config, run->device, &args.dtype));
    bool accumulates = run->n_microbatches > 1;
    args.grad_dtype = args.dtype == XP_BF16 && !accumulates ? XP_BF16 : XP_F32;
    run->dtype = args.dtype;
    run->grad_dtype = args.grad_dtype;
    XP_TRY(xp_model_create(&args, &run->model));
    if (config->activation_checkpoint.reuse_for_gradients > 0 &&
        !xp_model_reuses_for_grads(run->model))
        return xp_error(
            XP_ECONFIG,
            "activation_checkpoint.reuse_for_gradients = true, but gradients do not fit on "
            "spent expert rows: it takes a MoE model without tied embeddings, head_dim a "
            "multiple of 64, no recomputation, one microbatch a step, and rows of a layer "
            "larger than its parameters. Set it to auto");
    xp_shard_args shard_args = {
        .table = xp_model_params(run->model),
        .mesh = &run->mesh,
        .device = run->device,
        .params = xp_model_param_data(run->model),
        .grads = xp_model_grad_data(run->model),
        .param_dtype = args.dtype,
        .grad_dtype = args.grad_dtype,
        .bucket_bytes = config->parallelism.bucket_mb << 20,
    };
    return xp_shard_create(&shard_args, &run->shard);
}

/* What libraries keep on a GPU: reserved before the first step, and counted on the null device. */
static xp_status reserve_libraries(xp_run *run) {
    size_t bytes = xp_ops_library_bytes(run->device);
    if (bytes == 0 || xp_device_get_kind(run->device) != XP_DEVICE_NULL)
        return xp_ops_prepare(run->device);
    return xp_device_alloc(run->device, bytes, "workspace", &run->library_bytes);
}

/* The configuration's GEMM algorithms; a shape that is not among them keeps the library's own. */
static xp_status choose_gemms(const xp_config *config, xp_device *device) {
    const xp_string_list *list = &config->gemm.algorithms;
    xp_gemm_choice choices[XP_GEMM_CHOICES_MAX];
    if (list->n > XP_GEMM_CHOICES_MAX)
        return xp_error(XP_ECONFIG, "gemm.algorithms has %d entries; at most %d are kept", list->n,
                        XP_GEMM_CHOICES_MAX);
    for (int i = 0; i < list->n; i++)
        XP_TRY(xp_gemm_choice_parse(list->items[i], &choices[i]));
    return list->n > 0 ? xp_ops_gemm_choose(device, choices, list->n) : XP_OK;
}

/* memory: NULL to choose. */
static xp_status reserve_parts(const xp_config *config, xp_comm *world, const xp_mesh *layout,
                               const xp_run_memory *memory, xp_run *run) {
    XP_TRY(xp_arch_from_config(config, &run->arch));
    if (layout)
        run->mesh = *layout;
    else
        XP_TRY(xp_mesh_create(world, config, &run->mesh));
    run->mesh.shares_gpus |= xp_device_is_gpu_shared(run->device);
    XP_TRY(check_experts(&run->arch, run->mesh.ep_size));
    XP_TRY(reserve_libraries(run));
    XP_TRY(choose_gemms(config, run->device));
    run->n_data_ranks = run->mesh.n_ranks;
    run->local_batch = config->training.local_batch_size;
    run->seq_len = config->training.seq_len;
    XP_TRY(xp_run_batch_sizes(config, run->n_data_ranks, &run->n_microbatches, &run->global_batch));
    if (memory)
        run->memory = *memory;
    else
        XP_TRY(choose_memory(config, run));
    XP_TRY(xp_stream_create(run->device, XP_STREAM_COMPUTE, &run->stream));
    return create_model(config, run);
}

static xp_status reserve(const xp_config *config, xp_comm *world, const xp_mesh *layout,
                         const xp_run_memory *memory, xp_run *run) {
    xp_status status = reserve_parts(config, world, layout, memory, run);
    if (status != XP_OK)
        xp_run_release(run);
    return status;
}

xp_status xp_run_reserve(const xp_config *config, xp_device *device, xp_comm *world,
                         const xp_mesh *layout, xp_run *run) {
    memset(run, 0, sizeof *run);
    run->device = device;
    return reserve(config, world, layout, NULL, run);
}

void xp_run_release(xp_run *run) {
    xp_shard_destroy(run->shard);
    xp_model_destroy(run->model);
    xp_stream_destroy(run->stream);
    if (run->device)
        xp_device_free(run->device, run->library_bytes);
    xp_mesh_destroy(&run->mesh);
    memset(run, 0, sizeof *run);
}
