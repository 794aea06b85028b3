/* expar bench decode: tokens a second of text generation, one sequence, beside the time to read the weights once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "bench.h"
#include "cli.h"
#include "core/file.h"
#include "options.h"
#include "train/inference.h"

typedef struct decode_options {
    xp_inference_args open;
    int64_t prompt, tokens;
    bool json;
} decode_options;

/* Greedy, as what is sampled does not matter. */
static int32_t next_token(const float *logits, int64_t vocab) {
    int64_t best = 0;
    for (int64_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

static xp_status measure(const decode_options *o, xp_decoder *decoder, int64_t vocab, float *logits,
                         int32_t *ids, double *prompt_s, double *decode_s) {
    for (int64_t i = 0; i < o->prompt; i++)
        ids[i] = (int32_t)((i * 7919 + 13) % vocab);
    /* The first pass loads kernels and libraries. */
    XP_TRY(xp_decoder_feed(decoder, ids, o->prompt, logits));
    XP_TRY(xp_decoder_feed(decoder, ids, 1, logits));
    xp_decoder_reset(decoder);
    double start = xp_time_s();
    XP_TRY(xp_decoder_feed(decoder, ids, o->prompt, logits));
    *prompt_s = xp_time_s() - start;
    start = xp_time_s();
    for (int64_t i = 0; i < o->tokens; i++) {
        const int32_t next = next_token(logits, vocab);
        XP_TRY(xp_decoder_feed(decoder, &next, 1, logits));
    }
    *decode_s = xp_time_s() - start;
    return XP_OK;
}

static void print_result(const decode_options *o, const xp_inference *inf, double prompt_s,
                         double decode_s) {
    const double rate = (double)o->tokens / decode_s;
    const double active_gb =
        (double)xp_arch_n_active_params(&inf->arch) * (double)xp_dtype_bytes(inf->dtype) / 1e9;
    if (o->json)
        printf(
            "{\"model\": \"%s\", \"device\": \"%s\", \"dtype\": \"%s\", \"prompt_tokens\": %lld, "
            "\"prompt_s\": %.6f, \"tokens\": %lld, \"tokens_per_s\": %.3f, \"active_weights_gb\": "
            "%.3f, \"weights_gb_per_s\": %.1f}\n",
            inf->source, xp_device_name(inf->device), xp_dtype_name(inf->dtype),
            (long long)o->prompt, prompt_s, (long long)o->tokens, rate, active_gb,
            active_gb * rate);
    else
        printf("%s on %s, %s: %.1f tokens/s (%.2f ms each), a prompt of %lld tokens in %.1f ms; a "
               "token "
               "reads %.2f GB of weights: %.0f GB/s\n",
               inf->source, xp_device_name(inf->device), xp_dtype_name(inf->dtype), rate,
               1e3 / rate, (long long)o->prompt, 1e3 * prompt_s, active_gb, active_gb * rate);
}

static xp_status run(decode_options *o) {
    xp_inference inf;
    o->open.n_rows = 1;
    o->open.seq_len = o->prompt;
    XP_TRY(xp_inference_open(&o->open, &inf));
    xp_decoder *decoder = NULL;
    float *logits = malloc((size_t)inf.arch.vocab_size * sizeof *logits);
    int32_t *ids = malloc((size_t)o->prompt * sizeof *ids);
    double prompt_s = 0, decode_s = 0;
    xp_status status = logits && ids ? XP_OK : xp_error(XP_ENOMEM, "no memory for the logits");
    if (status == XP_OK)
        status = xp_decoder_create(inf.model, o->prompt + o->tokens, &decoder);
    if (status == XP_OK)
        status = measure(o, decoder, inf.arch.vocab_size, logits, ids, &prompt_s, &decode_s);
    if (status == XP_OK)
        print_result(o, &inf, prompt_s, decode_s);
    xp_decoder_destroy(decoder);
    free(logits);
    free(ids);
    xp_inference_close(&inf);
    return status;
}

int bench_decode(int argc, char **argv) {
    decode_options o = {.open = {.step = -1, .warn = cli_warn}, .prompt = 128, .tokens = 100};
    bool done;
    const cli_option options[] = {
        {"--flavor", CLI_STRING, &o.open.flavor, "NAME",
         "random weights of this flavor (tiny_moe); or", 0, 0},
        {"--hf", CLI_STRING, &o.open.hf, "DIR", "a Hugging Face folder; or", 0, 0},
        {"--checkpoint", CLI_STRING, &o.open.checkpoint, "DIR", "a run", 0, 0},
        {"--prompt-tokens", CLI_INT, &o.prompt, "N", "tokens of the prompt (128)", 1, 1 << 20},
        {"--tokens", CLI_INT, &o.tokens, "N", "tokens to generate (100)", 1, 1e6},
        {"--device", CLI_STRING, &o.open.device, "WHERE", "auto, cpu or cuda (auto)", 0, 0},
        {"--dtype", CLI_STRING, &o.open.dtype, "TYPE", "float32 or bfloat16 (on a GPU bfloat16)", 0,
         0},
        {"--json", CLI_FLAG, &o.json, NULL, "one JSON object", 0, 0},
    };
    const cli_syntax command = {
        .usage = "expar bench decode [--flavor NAME | --hf DIR | --checkpoint DIR] [options]",
        .about = "Tokens a second of `expar generate` for one sequence. Its limit is the memory: "
                 "each token reads "
                 "the weights that it uses.",
        .examples = "  expar bench decode --flavor 10B-A1B --device cuda\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    int code = cli_parse(&command, argc, argv, NULL, &done);
    if (code != 0 || done)
        return code;
    if (!cli_check_device(o.open.device, o.open.dtype))
        return XP_EXIT_USAGE;
    if (!o.open.flavor && !o.open.hf && !o.open.checkpoint)
        o.open.flavor = "tiny_moe";
    xp_status status = run(&o);
    return status == XP_OK ? XP_EXIT_OK : cli_fail(status);
}
