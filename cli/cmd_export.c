/* expar export: a training checkpoint as a Hugging Face folder. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include "cli.h"
#include "options.h"
#include "checkpoint/state.h"
#include "core/file.h"
#include "core/text.h"
#include "train/evaluate.h"
#include "train/hf_io.h"
#include "train/arch_values.h"

typedef struct export_options {
    const char *checkpoint, *out, *dtype, *tokenizer, *data;
    int64_t step;
    bool fused;
} export_options;

/* How much a trained expert bias matters: the loss of the export with it and without it. */
static xp_status compare_bias(const export_options *o, int64_t seq_len) {
    xp_inference_args open = {
        .hf = o->out, .n_rows = 4, .seq_len = seq_len, .need_tokenizer = true};
    xp_inference inf;
    XP_TRY(xp_inference_open(&open, &inf));
    char cache[4096];
    snprintf(cache, sizeof cache, "%s/.token_cache", o->checkpoint);
    xp_dataset_args data = {.kind = "text",
                            .path = o->data,
                            .tokenizer = inf.tokenizer,
                            .cache_folder = cache,
                            .vocab_size = inf.arch.vocab_size,
                            .seq_len = seq_len};
    xp_dataset *dataset = NULL;
    xp_evaluation with = {0}, without = {0};
    xp_status status = xp_dataset_open(&data, &dataset);
    xp_evaluate_args args = {
        .inference = &inf, .dataset = dataset, .n_rows = open.n_rows, .max_rows = 64};
    if (status == XP_OK)
        status = xp_evaluate(&args, &with);
    if (status == XP_OK)
        status = xp_inference_use_bias(&inf, false);
    if (status == XP_OK)
        status = xp_evaluate(&args, &without);
    if (status == XP_OK)
        printf("loss on %s (%lld tokens): %.6f with the expert bias, %.6f without (what "
               "transformers computes)\n",
               o->data, (long long)with.n_tokens, with.loss, without.loss);
    xp_dataset_close(dataset);
    xp_inference_close(&inf);
    return status;
}

static xp_status export_ckpt(const export_options *o, const xp_ckpt *ckpt, bool *has_bias,
                             int64_t *seq_len) {
    xp_arch arch;
    XP_TRY(xp_arch_values_read(ckpt, &arch));
    const char *saved = xp_ckpt_value_get(ckpt, "training.seq_len");
    if (saved == NULL || !xp_parse_i64(saved, seq_len) || *seq_len < 1)
        *seq_len = 2048;
    char assets[PATH_MAX];
    XP_TRY(xp_hf_find_assets(ckpt, assets));
    const char *tokenizer = o->tokenizer ? o->tokenizer : assets[0] ? assets : NULL;
    xp_hf_from_ckpt_args args = {.ckpt = ckpt,
                                 .arch = &arch,
                                 .folder = o->out,
                                 .dtype = strcmp(o->dtype, "bfloat16") == 0 ? XP_BF16 : XP_F32,
                                 .max_positions = *seq_len,
                                 .assets = assets[0] ? assets : o->tokenizer,
                                 .tokenizer_folder = o->tokenizer,
                                 .fused_experts = o->fused,
                                 .warn = cli_warn};
    XP_TRY(xp_hf_export_ckpt(&args, has_bias));
    printf("exported %s (step %lld, %s) to %s%s\n", xp_ckpt_path(ckpt),
           (long long)xp_ckpt_step(ckpt), o->dtype, o->out,
           tokenizer == NULL ? " without a tokenizer (none is known; --tokenizer DIR adds it)"
                             : "");
    return XP_OK;
}

static xp_status run(const export_options *o) {
    xp_ckpt *ckpt = NULL;
    bool has_bias = false;
    int64_t seq_len = 0;
    xp_status status = xp_inference_find_ckpt(o->checkpoint, o->step, &ckpt);
    if (status == XP_ENOENT && o->step < 0)
        status = xp_ckpt_none_in(o->checkpoint);
    if (status == XP_OK)
        status = export_ckpt(o, ckpt, &has_bias, &seq_len);
    xp_ckpt_close(ckpt);
    if (status != XP_OK || !has_bias)
        return status;
    fprintf(
        stderr,
        "warning: Hugging Face's Qwen3-MoE has no expert bias; the trained one went into %s/%s, "
        "which transformers ignores\n",
        o->out, XP_HF_EXTRA_FILE);
    if (o->data != NULL)
        return compare_bias(o, seq_len);
    fprintf(stderr,
            "         what it matters: expar export ... --data FILE, or expar eval --hf %s "
            "--data FILE\n",
            o->out);
    return XP_OK;
}

int cmd_export(int argc, char **argv) {
    export_options o = {.dtype = "float32", .step = -1};
    bool done;
    const cli_option options[] = {
        {"--checkpoint", CLI_STRING, &o.checkpoint, "DIR",
         "a run's dump folder, its checkpoint folder or a step-N folder", 0, 0},
        {"--out", CLI_STRING, &o.out, "DIR", "the folder to write; appears when it is complete", 0,
         0},
        {"--step", CLI_INT, &o.step, "N", "which checkpoint; default the newest complete one", 0,
         1e15},
        {"--dtype", CLI_STRING, &o.dtype, "TYPE", "float32 or bfloat16 (float32)", 0, 0},
        {"--tokenizer", CLI_STRING, &o.tokenizer, "DIR", "default: the one the run used", 0, 0},
        {"--fused-experts", CLI_FLAG, &o.fused, NULL,
         "a layer's experts as one gate_up_proj and one down_proj (transformers 5)", 0, 0},
        {"--data", CLI_STRING, &o.data, "FILE",
         "text to measure what a trained expert bias matters", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar export --checkpoint DIR --out DIR [options]",
        .about = "Write a training checkpoint as a folder that Hugging Face transformers and vLLM "
                 "load.",
        .examples =
            "  expar export --checkpoint outputs/debug_moe --out my_model\n"
            "  expar export --checkpoint outputs/debug_moe --step 500 --out my_model --dtype "
            "bfloat16\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    int code = cli_parse(&command, argc, argv, NULL, &done);
    if (code != 0 || done)
        return code;
    if (o.checkpoint == NULL || o.out == NULL) {
        fprintf(stderr, "error: %s is missing\nusage: %s\n",
                o.checkpoint == NULL ? "--checkpoint" : "--out", command.usage);
        return XP_EXIT_USAGE;
    }
    if (strcmp(o.dtype, "float32") != 0 && strcmp(o.dtype, "bfloat16") != 0) {
        fprintf(stderr, "error: --dtype: \"%s\" is not float32 or bfloat16\n", o.dtype);
        return XP_EXIT_USAGE;
    }
    xp_status status = run(&o);
    return status == XP_OK ? XP_EXIT_OK : cli_fail(status);
}
