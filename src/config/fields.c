/** The field table and look-ups in it. */
#include "config/fields.h"

#include <string.h>

/* A member's offset; does not compile when the member's type is not what the field type says. */
#define AT(member, type)                                                                           \
    (offsetof(xp_config, member) + 0 * sizeof(_Generic(&((xp_config *)0)->member, type * : 0)))

#define INT(section, name, initial_, min_, max_)                                                   \
#section, #name, XP_FIELD_INT, AT(section.name, int64_t), .initial = (initial_),               \
                                                              .min = (min_), .max = (max_)
#define FLOAT(section, name, initial_, min_, max_)                                                 \
#section, #name, XP_FIELD_FLOAT, AT(section.name, double), .initial = (initial_),              \
                                                               .min = (min_), .max = (max_)
#define BOOL(section, name, initial_)                                                              \
#section, #name, XP_FIELD_BOOL, AT(section.name, bool), .initial = (initial_)
#define SWITCH(section, name)                                                                      \
#section, #name, XP_FIELD_SWITCH, AT(section.name, int64_t), .initial = NULL
#define AUTO_SWITCH(section, name)                                                                 \
#section, #name, XP_FIELD_SWITCH, AT(section.name, int64_t), .initial = "auto",                \
                                                                 .choices = "auto|true|false"
#define STRING(section, name, initial_)                                                            \
#section, #name, XP_FIELD_STRING, AT(section.name, const char *), .initial = (initial_)
#define PATH(section, name, initial_)                                                              \
#section, #name, XP_FIELD_PATH, AT(section.name, const char *), .initial = (initial_)
#define CHOICE(section, name, initial_, choices_)                                                  \
#section, #name, XP_FIELD_CHOICE, AT(section.name, const char *), .initial = (initial_),       \
                                                                      .choices = (choices_)
#define LIST(section, name)                                                                        \
#section, #name, XP_FIELD_LIST, AT(section.name, xp_string_list), .initial = NULL
#define SOURCES(section, name)                                                                     \
#section, #name, XP_FIELD_SOURCES, AT(section.name, xp_source_list), .initial = NULL
#define TT .torchtitan = true

#define BY_FLAVOR .unset = "by the flavor"
#define BIG       1e15 /* no limit that a person would meet, and exact in a double */

static const xp_field fields[] = {
    {PATH(job, config_file, NULL), TT, .help = "the TOML file to read; only on the command line"},
    {PATH(job, dump_folder, "./outputs"), TT,
     .help = "where the run writes: config.toml, metrics, checkpoints, traces"},
    {STRING(job, description, NULL), TT, .help = "free text, printed when the run starts"},
    {BOOL(job, print_config, "false"), TT,
     .help = "print the merged configuration when the run starts"},
    {STRING(job, save_config_file, "config.toml"), TT,
     .help = "name of the merged configuration in the dump folder"},
    {INT(job, threads_per_rank, "0", 0, 4096), .unset = "cores / ranks of this machine",
     .help = "CPU threads of each rank"},
    {INT(job, ngpu, "0", 0, 65536), .unset = "chosen by the command",
     .help = "ranks of this machine, of each node with --hostfile; the environment's NGPU"},
    {CHOICE(job, ranks, "auto", "auto|threads|processes"),
     .help = "what ranks are; auto: processes where each of several ranks has a GPU of its own, "
             "else threads of one process"},
    {BOOL(job, check_memory, "true"),
     .help =
         "on the CPU, refuse a run that needs more memory than this machine has, or its control "
         "group allows"},
    {INT(job, log_rank, "-1", 0, 1e9), .unset = "rank 0",
     .help = "the rank whose lines are shown; the environment's LOG_RANK"},

    {STRING(model, name, "qwen3"), TT, .help = "model family"},
    {STRING(model, flavor, "tiny_moe"), TT,
     .help = "sizes: a named flavor, `hf` (config.json in hf_assets_path) or `custom`; the suffix "
             "-deepep turns the fast expert parallelism on"},
    {PATH(model, hf_assets_path, NULL), TT, .is_input = true,
     .help = "folder with tokenizer.json, and config.json and weights where they are used"},
    {INT(model, dim, "0", 0, 1 << 20), BY_FLAVOR, .help = "width of the residual stream"},
    {INT(model, n_layers, "0", 0, 10000), BY_FLAVOR, .help = "transformer layers"},
    {INT(model, n_heads, "0", 0, 65536), BY_FLAVOR, .help = "query heads"},
    {INT(model, n_kv_heads, "0", 0, 65536), BY_FLAVOR,
     .help = "key and value heads; divides n_heads"},
    {INT(model, head_dim, "0", 0, 65536), BY_FLAVOR, .help = "width of a head"},
    {INT(model, hidden_dim, "0", 0, 1 << 24), BY_FLAVOR,
     .help = "width of the dense feed-forward layer"},
    {INT(model, vocab_size, "0", 0, 1 << 24), BY_FLAVOR, .help = "rows of the embedding"},
    {FLOAT(model, rope_theta, "0", 0, 1e12), BY_FLAVOR,
     .help = "base of the rotary position embedding"},
    {FLOAT(model, norm_eps, "0", 0, 1), BY_FLAVOR, .help = "epsilon of every RMS norm"},
    {SWITCH(model, tie_embeddings), BY_FLAVOR, .help = "one matrix for embedding and output head"},

    {STRING(training, dataset, "text"), TT,
     .help = "`text` (.txt, .jsonl, .json, also .gz and .zst), `tokens` (.bin), or a c4-style "
             "name, read as text"},
    {PATH(training, dataset_path, NULL), TT, .is_input = true,
     .help = "a file, a folder with all below it, or a glob"},
    {SOURCES(training, datasets), .is_input = true, .unset = "dataset_path alone",
     .help = "several sources instead, each {path, weight}: rows come from them in these shares"},
    {STRING(training, text_field, "text"), .help = "the field of a JSON line that holds its text"},
    {CHOICE(training, bad_lines, "error", "error|skip"),
     .help = "a JSON line that cannot be read: an error, or skipped and counted"},
    {CHOICE(training, token_type, "auto", "auto|uint16|uint32"),
     .help = "what .bin files without a header hold; auto recognises it"},
    {INT(training, local_batch_size, "8", 1, BIG), TT, .help = "rows of a microbatch on each rank"},
    {INT(training, global_batch_size, "-1", -1, BIG), TT, .zero_refused = true,
     .help = "rows of a step over all ranks, reached by accumulation; -1 = local_batch_size x data "
             "ranks"},
    {INT(training, seq_len, "2048", 1, 1 << 24), TT, .help = "tokens of a row"},
    {FLOAT(training, max_norm, "1.0", 0, BIG), TT,
     .help = "clip gradients to this global norm; 0 = do not clip"},
    {INT(training, steps, "10000", 1, BIG), TT, .help = "optimizer steps of the run"},
    {CHOICE(training, dtype, NULL, "float32|bfloat16"), TT,
     .unset = "float32 on the CPU, bfloat16 on a GPU", .help = "type of weights and activations"},
    {CHOICE(training, attention, "causal", "causal|document"),
     .help = "tokens see the whole row before them, or only their own document"},
    {SWITCH(training, shuffle), .unset = "true for text, false for tokens",
     .help = "seeded order of documents (text) or rows (tokens), a new one each epoch"},
    {CHOICE(training, backend, "auto", "auto|cpu|cuda"),
     .help = "where to compute; auto: on a GPU when this machine has one that works"},
    {AUTO_SWITCH(training, cuda_graph),
     .help = "launch whole passes as CUDA graphs, without expert parallelism; auto: with one rank, "
             "where launches take much of a step"},

    {CHOICE(optimizer, name, "AdamW", "AdamW"), TT, .help = "the optimizer"},
    {FLOAT(optimizer, lr, "8e-4", 0, 1e6), TT, .help = "peak learning rate"},
    {FLOAT(optimizer, beta1, "0.9", 0, 0.9999999), TT, .range = "at least 0 and below 1",
     .help = "decay of the first moment"},
    {FLOAT(optimizer, beta2, "0.95", 0, 0.9999999), TT, .range = "at least 0 and below 1",
     .help = "decay of the second moment"},
    {FLOAT(optimizer, eps, "1e-8", 1e-30, 1), TT,
     .range = "1e-30 to 1: with less, a parameter without a gradient is updated by 0 / 0",
     .help = "added to the root of the second moment"},
    {FLOAT(optimizer, weight_decay, "0.1", 0, 1e6), TT, .help = "decoupled weight decay"},
    {BOOL(optimizer, decay_norms, "true"),
     .help = "weight decay on all parameters; false: on matrices only, norms stay out of it"},

    {INT(lr_scheduler, warmup_steps, "200", 0, BIG), TT, .help = "steps of linear warm-up"},
    {INT(lr_scheduler, total_steps, "0", 0, BIG), TT, .unset = "training.steps",
     .help = "length of the schedule"},
    {FLOAT(lr_scheduler, decay_ratio, "-1", 0, 1), TT, .unset = "decay right after the warm-up",
     .help = "share of the steps, at the end, in which the rate decays"},
    {CHOICE(lr_scheduler, decay_type, "linear", "linear|sqrt|cosine"), TT,
     .help = "shape of the decay"},
    {FLOAT(lr_scheduler, min_lr_factor, "0.0", 0, 1), TT,
     .help = "the rate decays to this share of the peak"},

    {INT(parallelism, data_parallel_replicate_degree, "1", 1, BIG), TT,
     .help = "copies of the sharded state"},
    {INT(parallelism, data_parallel_shard_degree, "-1", -1, BIG), TT, .zero_refused = true,
     .help = "ranks that share one copy of the optimizer state; -1 = the rest of the ranks"},
    {INT(parallelism, expert_parallel_degree, "1", 1, 65536), TT,
     .help = "consecutive ranks that share the experts; divides the shard degree"},
    {CHOICE(parallelism, expert_parallel_comm_backend, NULL, "standard|deepep"), TT, BY_FLAVOR,
     .help = "how token rows travel: all-to-all, or straight into the peers' memory"},
    {AUTO_SWITCH(parallelism, expert_parallel_overlap),
     .help = "true: dispatch and combine one half of a microbatch while the other computes; auto: "
             "where every rank is a process with a GPU of its own, the exchange runs beside GEMMs "
             "that do not need it, the same bits as false"},
    {INT(parallelism, bucket_mb, "64", 1, 65536),
     .help = "MiB of gradients that are reduced together"},
    {INT(parallelism, tensor_parallel_degree, "1", 1, BIG), TT,
     .help = "must be 1: not supported yet"},
    {INT(parallelism, pipeline_parallel_degree, "1", 1, BIG), TT,
     .help = "must be 1: not supported yet"},
    {INT(parallelism, context_parallel_degree, "1", 1, BIG), TT,
     .help = "must be 1: not supported yet"},

    {INT(moe, num_experts, "0", 0, 65536), BY_FLAVOR, .help = "experts of a layer"},
    {INT(moe, top_k, "0", 0, 64), BY_FLAVOR, .help = "experts that a token goes to"},
    {INT(moe, moe_dim, "0", 0, 1 << 24), BY_FLAVOR, .help = "width of an expert"},
    {CHOICE(moe, score_func, NULL, "softmax|sigmoid"), BY_FLAVOR,
     .help = "router scores from logits"},
    {SWITCH(moe, route_norm), BY_FLAVOR, .help = "make the weights of a token's experts sum to 1"},
    {FLOAT(moe, route_scale, "0", 0, 1e6), BY_FLAVOR, .help = "factor on the routing weights"},
    {SWITCH(moe, use_deepep), BY_FLAVOR,
     .help = "the same as expert_parallel_comm_backend = \"deepep\""},
    {CHOICE(moe, save_dispatched, "auto", "auto|yes|no"),
     .help = "keep the received rows for the backward pass, or dispatch again"},
    {FLOAT(moe, load_balance_coeff, "1e-3", 0, 1e6),
     .help = "step of the router's balancing bias; 0 = no bias"},
    {FLOAT(moe, aux_loss_coeff, "0", 0, 1e6), .help = "weight of the auxiliary balancing loss"},
    {FLOAT(moe, z_loss_coeff, "0", 0, 1e6), .help = "weight of the router's z-loss"},
    {FLOAT(moe, capacity_factor, "2.0", 1e-3, 1e6),
     .help = "rows reserved on a rank, relative to a balanced load; more goes in rounds, nothing "
             "is dropped"},
    {FLOAT(moe, saved_rows_factor, "0", 0, 1e6), .unset = "chosen",
     .help = "rows that the experts keep for the backward pass, relative to a balanced load: what "
             "does not fit is computed again; 0 = the capacity where memory allows, else 1.25"},

    {INT(deepep, num_sms, "0", 0, 1024), .unset = "chosen",
     .help = "GPU multiprocessors for dispatch and combine"},
    {CHOICE(deepep, transport, "auto", "auto|p2p|a2a|hierarchical"),
     .help = "how rows reach their rank"},
    {INT(deepep, chunk_tokens, "0", 0, 1 << 24), .unset = "chosen",
     .help = "tokens sent as one piece; no effect yet"},
    {FLOAT(deepep, overlap_split, "0.5", 0, 1),
     .help = "share of the microbatch in the first half, with expert_parallel_overlap = true"},
    {INT(deepep, overlap_num_sms, "0", 0, 1024), .unset = "16, 24 for combine send",
     .help = "GPU multiprocessors for dispatch and combine that run beside GEMMs"},
    {STRING(deepep, tuned_for, NULL),
     .help =
         "the machine and model that these values were measured for; elsewhere the defaults are "
         "used, with a word"},
    {PATH(deepep, tuned_file, NULL), .is_input = true,
     .unset = "NAME.tuned.toml beside the configuration NAME.toml",
     .help = "what `expar tune` has written, picked up where it fits; `none`: do not look for it"},

    {STRING(gemm, tuned_for, NULL),
     .help = "the GPU and library that these algorithms were measured for; elsewhere the library's "
             "own are used, with a word"},
    {LIST(gemm, algorithms), .unset = "the library's own",
     .help = "dense GEMMs on a GPU: cuBLASLt's algorithm by shape, as `expar tune` writes them; "
             "all are deterministic, but another one rounds differently"},

    {CHOICE(activation_checkpoint, mode, "none", "none|selective|full"), TT,
     .help = "compute activations again in the backward pass: less memory, more time"},
    {AUTO_SWITCH(activation_checkpoint, reuse_for_gradients),
     .help =
         "MoE models: gradients take the memory of expert rows that the backward pass has read: "
         "less "
         "memory, the same bits and time; not with recomputation, gradient accumulation or a tied "
         "head; auto: where a GPU's memory asks for it"},

    {BOOL(checkpoint, enable, "false"), TT,
     .help = "save checkpoints, and resume from the newest when started again"},
    {PATH(checkpoint, folder, "checkpoint"), TT, .help = "where, inside the dump folder"},
    {INT(checkpoint, interval, "500", 1, BIG), TT, .help = "steps between checkpoints"},
    {PATH(checkpoint, initial_load_path, NULL), TT, .is_input = true,
     .help = "start from this checkpoint when the run has none of its own"},
    {BOOL(checkpoint, initial_load_model_only, "true"), TT,
     .help = "take only the weights from initial_load_path"},
    {BOOL(checkpoint, initial_load_in_hf, "false"), TT,
     .help = "initial_load_path is a Hugging Face folder; without a path model.hf_assets_path is "
             "loaded"},
    {BOOL(checkpoint, last_save_model_only, "false"), TT,
     .help = "the last checkpoint holds weights only, and cannot be resumed"},
    {BOOL(checkpoint, last_save_in_hf, "false"), TT,
     .help = "also write the final weights as a Hugging Face folder"},
    {CHOICE(checkpoint, export_dtype, "float32", "float32|bfloat16|float16"), TT,
     .help = "type of exported weights; float16 is written as float32, with a warning"},
    {CHOICE(checkpoint, async_mode, "async", "disabled|async|async_with_pinned_mem"), TT,
     .help = "write while training goes on; async_with_pinned_mem means async here"},
    {INT(checkpoint, keep_latest_k, "10", 0, BIG), TT,
     .help = "checkpoints to keep; 0 = all, 1 is refused"},
    {INT(checkpoint, load_step, "-1", -1, BIG), TT,
     .help = "resume from this step; -1 = the newest complete checkpoint"},
    {LIST(checkpoint, exclude_from_loading), TT, .unset = "nothing",
     .help = "parts to leave out when loading: optimizer, lr_scheduler, dataloader, expert_bias, "
             "train_state, or tensor names"},
    {BOOL(checkpoint, enable_first_step_checkpoint, "false"), TT,
     .help = "also save after the first step"},

    {INT(metrics, log_freq, "10", 1, BIG), TT,
     .help = "steps between lines on the screen; the log file has every step"},
    {BOOL(metrics, enable_tensorboard, "false"), TT, .help = "write TensorBoard event files"},
    {PATH(metrics, save_tb_folder, "tb"), TT, .help = "their folder, inside the dump folder"},
    {BOOL(metrics, disable_color_printing, "false"), TT, .help = "no colours on a terminal"},
    {PATH(metrics, log_file, "metrics.jsonl"),
     .help = "one JSON object a step, inside the dump folder"},

    {BOOL(profiling, enable_profiling, "false"), TT, .help = "write a trace of some steps"},
    {PATH(profiling, save_traces_folder, "traces"), TT,
     .help = "their folder, inside the dump folder"},
    {INT(profiling, profile_freq, "10", 1, BIG), TT, .help = "steps between traces"},

    {BOOL(validation, enable, "false"), TT, .help = "measure the loss on held-out data"},
    {STRING(validation, dataset, NULL), TT, .unset = "training.dataset",
     .help = "as training.dataset"},
    {PATH(validation, dataset_path, NULL), TT, .is_input = true, .help = "the held-out data"},
    {INT(validation, local_batch_size, "0", 0, BIG), TT, .unset = "training.local_batch_size",
     .help = "rows of a microbatch on each rank"},
    {INT(validation, seq_len, "0", 0, 1 << 24), TT, .unset = "training.seq_len",
     .help = "tokens of a row"},
    {INT(validation, freq, "10", 1, BIG), TT, .help = "steps between validations"},
    {INT(validation, steps, "-1", -1, BIG), TT, .zero_refused = true,
     .help = "batches of a validation; -1 = all of the data"},

    {INT(comm, init_timeout_seconds, "300", 1, 1e6), TT,
     .help = "how long ranks wait for each other at the start"},
    {INT(comm, train_timeout_seconds, "100", 1, 1e6), TT,
     .help = "how long a rank waits for a peer in training"},

    {INT(debug, seed, "0", -1, BIG), TT,
     .help = "seed of the weights and of the data order; -1 means 0"},
    {BOOL(debug, deterministic, "true"), TT,
     .help = "the same bits every time; false permits faster paths where there are any"},
    {BOOL(debug, moe_force_load_balance, "false"), TT,
     .help = "ignore the router's choice and spread tokens evenly, to measure speed"},
    {CHOICE(debug, moe_force_load_balance_mode, "modulo", "modulo|spread"),
     .help = "how they are spread: TorchTitan's way, or over all ranks"},
    {INT(debug, moe_send_copies, "1", 1, 64),
     .help = "send every row that goes to another rank so many times, to measure with few ranks "
             "what many would move; results do not change. Refused with checkpoint.enable"},
    {STRING(debug, device_caps, NULL),
     .help = "capabilities of the device to leave out, to repeat a run on plainer code: avx512, "
             "avx2 (CPU); wgmma, attention_forward, silu_epilogue, bulk, cudnn, side_stream, "
             "deterministic (GPU)"},
};

static const char *const sections[] = {
    "job",         "model",   "training",  "optimizer",  "lr_scheduler",
    "parallelism", "moe",     "deepep",    "gemm",       "activation_checkpoint",
    "checkpoint",  "metrics", "profiling", "validation", "comm",
    "debug"};

int xp_field_count(void) {
    return (int)(sizeof fields / sizeof fields[0]);
}

const xp_field *xp_field_at(int i) {
    return i >= 0 && i < xp_field_count() ? &fields[i] : NULL;
}

const char *xp_field_section(int i) {
    int n = (int)(sizeof sections / sizeof sections[0]);
    return i >= 0 && i < n ? sections[i] : NULL;
}

const xp_field *xp_field_find(const char *section, const char *key) {
    for (int i = 0; i < xp_field_count(); i++)
        if (strcmp(fields[i].key, key) == 0 && strcmp(fields[i].section, section) == 0)
            return &fields[i];
    return NULL;
}

const char *xp_field_type_text(const xp_field *field) {
    static const char *const texts[] = {
        [XP_FIELD_INT] = "int",       [XP_FIELD_FLOAT] = "float",   [XP_FIELD_BOOL] = "bool",
        [XP_FIELD_SWITCH] = "bool",   [XP_FIELD_STRING] = "string", [XP_FIELD_PATH] = "path",
        [XP_FIELD_CHOICE] = "choice", [XP_FIELD_LIST] = "list",     [XP_FIELD_SOURCES] = "sources"};
    return field->choices ? field->choices : texts[field->type];
}

const char *xp_field_default_text(const xp_field *field) {
    if (field->unset)
        return field->unset;
    return field->initial ? field->initial : "none";
}
