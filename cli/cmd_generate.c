/* expar generate: text from a checkpoint or a Hugging Face folder. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli.h"
#include "core/rng.h"
#include "core/text.h"
#include "options.h"
#include "train/inference.h"

typedef struct sampler {
    double temperature, top_p;
    uint64_t seed;
    int64_t n_drawn, vocab;
    int32_t *order; /* [vocab] */
    float *weights; /* [vocab] */
} sampler;

static int32_t greedy(const float *logits, int64_t vocab) {
    int64_t best = 0;
    for (int64_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

static int by_weight(const void *a, const void *b, void *context) {
    const float *w = context;
    float wa = w[*(const int32_t *)a], wb = w[*(const int32_t *)b];
    if (wa != wb)
        return wa < wb ? 1 : -1;
    return *(const int32_t *)a < *(const int32_t *)b ? -1 : 1;
}

/* Temperature, then the smallest set of tokens whose probability reaches top_p, then one draw. */
static int32_t draw(sampler *s, const float *logits) {
    if (s->temperature == 0.0)
        return greedy(logits, s->vocab);
    float top = logits[greedy(logits, s->vocab)];
    double sum = 0;
    for (int64_t i = 0; i < s->vocab; i++) {
        s->weights[i] = (float)exp(((double)logits[i] - top) / s->temperature);
        s->order[i] = (int32_t)i;
        sum += s->weights[i];
    }
    qsort_r(s->order, (size_t)s->vocab, sizeof *s->order, by_weight, s->weights);
    double kept = 0;
    int64_t n = 0;
    while (n < s->vocab && (n == 0 || kept < s->top_p * sum))
        kept += s->weights[s->order[n++]];
    double at =
        kept * (double)xp_rng_uniform(s->seed, xp_rng_stream("generate"), (uint64_t)s->n_drawn++);
    int64_t i = 0;
    for (; i < n - 1 && at >= s->weights[s->order[i]]; i++)
        at -= s->weights[s->order[i]];
    return s->order[i];
}

/* Print what `ids` mean beyond what was printed, holding back an unfinished UTF-8 sequence unless
 * `all`. */
static xp_status print_new(const xp_tokenizer *tokenizer, const xp_token_list *ids, size_t *printed,
                           bool all) {
    char *text;
    size_t n;
    XP_TRY(xp_tokenizer_decode(tokenizer, ids->ids, ids->n, true, &text, &n));
    size_t end = n;
    if (!all)
        for (size_t back = 0; back < 4 && back < n; back++)
            if ((text[n - 1 - back] & 0xc0) == 0xc0) {
                uint32_t c;
                if (xp_utf8_decode(text + n - 1 - back, back + 1, &c) == 0)
                    end = n - 1 - back;
                break;
            }
    if (end > *printed) {
        fwrite(text + *printed, 1, end - *printed, stdout);
        fflush(stdout);
        *printed = end;
    }
    free(text);
    return XP_OK;
}

static xp_status append(xp_token_list *list, int32_t id) {
    if (list->n == list->capacity) {
        int64_t capacity = 2 * list->capacity + 64;
        int32_t *grown = realloc(list->ids, (size_t)capacity * sizeof *grown);
        if (grown == NULL)
            return xp_error(XP_ENOMEM, "out of memory");
        list->ids = grown;
        list->capacity = capacity;
    }
    list->ids[list->n++] = id;
    return XP_OK;
}

static xp_status generate(xp_inference *inf, xp_decoder *decoder, const char *prompt,
                          int64_t max_tokens, sampler *s) {
    xp_token_list ids = {0};
    float *logits = malloc((size_t)s->vocab * sizeof *logits);
    xp_status status = logits == NULL ? xp_error(XP_ENOMEM, "out of memory") : XP_OK;
    int32_t bos = xp_tokenizer_bos(inf->tokenizer), eos = xp_tokenizer_eos(inf->tokenizer);
    int32_t start = bos >= 0 ? bos : eos;
    if (status == XP_OK && (bos >= 0 || (prompt[0] == '\0' && start >= 0)))
        status = append(&ids, start);
    if (status == XP_OK)
        status = xp_tokenizer_encode(inf->tokenizer, prompt, strlen(prompt), &ids);
    if (status == XP_OK && ids.n == 0)
        status = xp_error(XP_EINVAL, "an empty prompt needs a tokenizer with a BOS or EOS token; "
                                     "give --prompt TEXT");
    int64_t fed = 0;
    size_t printed = 0;
    for (int64_t i = 0; i < max_tokens && status == XP_OK; i++) {
        status = xp_decoder_feed(decoder, ids.ids + fed, ids.n - fed, logits);
        if (status != XP_OK)
            break;
        fed = ids.n;
        int32_t next = draw(s, logits);
        if (next == eos)
            break;
        status = append(&ids, next);
        if (status == XP_OK)
            status = print_new(inf->tokenizer, &ids, &printed, false);
    }
    if (status == XP_OK)
        status = print_new(inf->tokenizer, &ids, &printed, true);
    if (printed > 0)
        printf("\n");
    free(logits);
    xp_token_list_free(&ids);
    return status;
}

static xp_status run(const xp_inference_args *args, const char *prompt, int64_t max_tokens,
                     sampler *s) {
    xp_inference inf;
    XP_TRY(xp_inference_open(args, &inf));
    s->vocab = inf.arch.vocab_size;
    s->order = malloc((size_t)s->vocab * sizeof *s->order);
    s->weights = malloc((size_t)s->vocab * sizeof *s->weights);
    xp_decoder *decoder = NULL;
    xp_status status = s->order == NULL || s->weights == NULL
                           ? xp_error(XP_ENOMEM, "out of memory")
                           : xp_decoder_create(inf.model, args->seq_len, &decoder);
    if (status == XP_OK)
        status = generate(&inf, decoder, prompt, max_tokens, s);
    xp_decoder_destroy(decoder);
    free(s->order);
    free(s->weights);
    xp_inference_close(&inf);
    return status;
}

int cmd_generate(int argc, char **argv) {
    const char *prompt = "";
    int64_t max_tokens = 100, seed = 0, threads = 0;
    xp_inference_args args = {.step = -1, .need_tokenizer = true, .n_rows = 1, .warn = cli_warn};
    sampler s = {.temperature = 1.0, .top_p = 1.0};
    bool use_greedy = false, done;
    const cli_option options[] = {
        {"--checkpoint", CLI_STRING, &args.checkpoint, "DIR",
         "a run's dump folder, its checkpoint folder or a step-N folder", 0, 0},
        {"--hf", CLI_STRING, &args.hf, "DIR", "a Hugging Face folder instead", 0, 0},
        {"--step", CLI_INT, &args.step, "N", "which checkpoint; default the newest complete one", 0,
         1e15},
        {"--tokenizer", CLI_STRING, &args.tokenizer, "DIR", "default: the one the run used", 0, 0},
        {"--prompt", CLI_STRING, &prompt, "TEXT", "what to continue", 0, 0},
        {"--max-tokens", CLI_INT, &max_tokens, "N", "tokens to add at most (100)", 1, 1e6},
        {"--temperature", CLI_FLOAT, &s.temperature, "X", "0 = greedy (1.0)", 0, 100},
        {"--greedy", CLI_FLAG, &use_greedy, NULL, "the most likely token always", 0, 0},
        {"--top-p", CLI_FLOAT, &s.top_p, "X",
         "sample from the likeliest tokens up to this mass (1.0)", 1e-6, 1},
        {"--seed", CLI_INT, &seed, "N", "the same seed gives the same text (0)", 0, 1e18},
        {"--threads", CLI_INT, &threads, "N", "default: all cores", 1, 4096},
    };
    const cli_syntax command = {
        .usage = "expar generate (--checkpoint DIR | --hf DIR) [--prompt TEXT] [options]",
        .about = "Continue a text with a trained model.",
        .examples =
            "  expar generate --checkpoint outputs/debug_moe --prompt \"In the beginning\"\n"
            "  expar generate --hf my_model --prompt \"And\" --temperature 0.7 --top-p 0.9 --seed "
            "3\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    int code = cli_parse(&command, argc, argv, NULL, &done);
    if (code != 0 || done)
        return code;
    if ((args.checkpoint == NULL) == (args.hf == NULL)) {
        fprintf(stderr, "error: give either --checkpoint DIR or --hf DIR\nusage: %s\n",
                command.usage);
        return XP_EXIT_USAGE;
    }
    if (use_greedy)
        s.temperature = 0;
    s.seed = (uint64_t)seed;
    args.n_threads = (int)threads;
    /* the prompt's tokens are at most its bytes and a start token */
    args.seq_len = max_tokens + (int64_t)strlen(prompt) + 2;
    xp_status status = run(&args, prompt, max_tokens, &s);
    return status == XP_OK ? XP_EXIT_OK : cli_fail(status);
}
