#include "parallel/run.h"

#include <string.h>
#include "device/device_internal.h"
#include "device/plugin.h"
#include "ops/ops.h"

/* What driver and libraries take of a GPU beside a run: 1.03 GiB on an H200. */
static const int64_t context_bytes = (int64_t)(1.1 * (1 << 30));

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

/* Rows that experts over several GPUs keep for the backward pass. The host does not know how many
 * rows a layer gets, so each keeps its capacity, and nothing is computed again while there is room
 * for all layers. Where the device has no memory for that: 1.25 times the balanced load. */
static xp_status choose_saved_rows(const xp_config *config, xp_run *run) {
    const double least = 1.25;
    const int64_t has = xp_device_total_bytes(run->device) - context_bytes;
    run->saved_rows_factor = config->moe.saved_rows_factor;
    if (run->saved_rows_factor > 0 || xp_device_like(run->device) != XP_DEVICE_CUDA ||
        run->mesh.ep_size == 1 ||
        xp_run_recompute(config->activation_checkpoint.mode) != XP_RECOMPUTE_NONE)
        return XP_OK;
    if (run->mesh.shares_gpus)
        run->saved_rows_factor = least;
    if (run->mesh.shares_gpus || has <= 0)
        return XP_OK;
    const xp_device_args args = {.kind = XP_DEVICE_NULL, .n_threads = 1, .like = XP_DEVICE_CUDA};
    xp_mesh layout = run->mesh;
    layout.world = layout.shard = layout.replicate = layout.ep = layout.expert_shard =
        layout.expert_replicate = NULL;
    xp_device *counting = NULL;
    xp_run whole;
    XP_TRY(xp_device_create(&args, &counting));
    const xp_status status = xp_run_reserve(config, counting, NULL, &layout, &whole);
    if (status == XP_OK) {
        if (xp_device_bytes(counting, NULL) > has)
            run->saved_rows_factor = least;
        xp_run_release(&whole);
    }
    xp_device_destroy(counting);
    return status;
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

static xp_status create_model(const xp_config *config, xp_run *run) {
    run->document_attention = xp_run_attention(config) == XP_ATTENTION_DOCUMENT;
    xp_model_args args = {
        .arch = &run->arch,
        .document_attention = run->document_attention,
        .recompute = xp_run_recompute(config->activation_checkpoint.mode),
        .forced_balance = xp_run_forced(config),
        .overlap = xp_overlap_choose(config->parallelism.expert_parallel_overlap, run->mesh.ep_size,
                                     !computes_on_cpu(run->device), run->mesh.shares_gpus),
        .overlap_split = config->deepep.overlap_split,
        .overlap_sms = (int)config->deepep.overlap_num_sms,
        .aux_loss_coeff = config->moe.aux_loss_coeff,
        .z_loss_coeff = config->moe.z_loss_coeff,
        .save_dispatched = xp_run_save_dispatched(config->moe.save_dispatched),
        .saved_rows_factor = run->saved_rows_factor,
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

static xp_status reserve_parts(const xp_config *config, xp_comm *world, const xp_mesh *layout,
                               xp_run *run) {
    XP_TRY(xp_arch_from_config(config, &run->arch));
    if (layout)
        run->mesh = *layout;
    else
        XP_TRY(xp_mesh_create(world, config, &run->mesh));
    run->mesh.shares_gpus |= xp_device_is_gpu_shared(run->device);
    XP_TRY(check_experts(&run->arch, run->mesh.ep_size));
    XP_TRY(reserve_libraries(run));
    run->n_data_ranks = run->mesh.n_ranks;
    run->local_batch = config->training.local_batch_size;
    run->seq_len = config->training.seq_len;
    XP_TRY(xp_run_batch_sizes(config, run->n_data_ranks, &run->n_microbatches, &run->global_batch));
    XP_TRY(choose_saved_rows(config, run));
    XP_TRY(xp_stream_create(run->device, XP_STREAM_COMPUTE, &run->stream));
    return create_model(config, run);
}

xp_status xp_run_reserve(const xp_config *config, xp_device *device, xp_comm *world,
                         const xp_mesh *layout, xp_run *run) {
    memset(run, 0, sizeof *run);
    run->device = device;
    xp_status status = reserve_parts(config, world, layout, run);
    if (status != XP_OK)
        xp_run_release(run);
    return status;
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
