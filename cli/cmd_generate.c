/* expar generate: text from a checkpoint or a Hugging Face folder. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cli.h"
#include "core/rng.h"
#include "core/text.h"
#include "options.h"
#include "ranks.h"
#include "train/inference.h"

#define MAX_PIECE 1024

typedef struct sampler {
    cli_ranks ranks;
    double temperature, top_p;
    uint64_t seed;
    int64_t n_drawn, vocab, n_ids;
    int32_t
        *ids; /* [n_ids] those of [0, vocab) that the tokenizer has; models have rows for more */
    int32_t *order; /* [n_ids] */
    float *weights; /* [vocab] */
} sampler;

static int32_t greedy(const sampler *s, const float *logits) {
    int32_t best = s->ids[0];
    for (int64_t i = 1; i < s->n_ids; i++)
        if (logits[s->ids[i]] > logits[best])
            best = s->ids[i];
    return best;
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
        return greedy(s, logits);
    float top = logits[greedy(s, logits)];
    double sum = 0;
    for (int64_t i = 0; i < s->n_ids; i++) {
        int32_t id = s->order[i] = s->ids[i];
        s->weights[id] = (float)exp(((double)logits[id] - top) / s->temperature);
        sum += s->weights[id];
    }
    qsort_r(s->order, (size_t)s->n_ids, sizeof *s->order, by_weight, s->weights);
    double kept = 0;
    int64_t n = 0;
    while (n < s->n_ids && (n == 0 || kept < s->top_p * sum))
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

static xp_status encode_prompt(const xp_tokenizer *tokenizer, const char *prompt,
                               xp_token_list *ids) {
    int32_t bos = xp_tokenizer_bos(tokenizer), eos = xp_tokenizer_eos(tokenizer);
    int32_t start = bos >= 0 ? bos : eos;
    if (bos >= 0 || (prompt[0] == '\0' && start >= 0))
        XP_TRY(append(ids, start));
    XP_TRY(xp_tokenizer_encode(tokenizer, prompt, strlen(prompt), ids));
    if (ids->n == 0)
        return xp_error(XP_EINVAL, "an empty prompt needs a tokenizer with a BOS or EOS token; "
                                   "give --prompt TEXT");
    return XP_OK;
}

static xp_status generate(const xp_tokenizer *tokenizer, xp_decoder *decoder, xp_token_list *ids,
                          int64_t max_tokens, sampler *s) {
    float *logits = malloc((size_t)s->vocab * sizeof *logits);
    xp_status status = logits == NULL ? xp_error(XP_ENOMEM, "out of memory") : XP_OK;
    int32_t eos = xp_tokenizer_eos(tokenizer);
    int64_t fed = 0;
    size_t printed = 0;
    for (int64_t i = 0; i < max_tokens && status == XP_OK; i++) {
        status = xp_decoder_feed(decoder, ids->ids + fed, ids->n - fed, logits);
        if (status != XP_OK)
            break;
        fed = ids->n;
        int32_t next = draw(s, logits);
        if (s->ranks.comm) /* all ranks go on with the same token */
            status = xp_comm_broadcast(s->ranks.comm, &next, sizeof next, 0, NULL);
        if (status != XP_OK || next == eos)
            break;
        status = append(ids, next);
        if (status == XP_OK && s->ranks.speaks)
            status = print_new(tokenizer, ids, &printed, false);
    }
    if (status == XP_OK && s->ranks.speaks)
        status = print_new(tokenizer, ids, &printed, true);
    if (printed > 0)
        printf("\n");
    free(logits);
    return status;
}

/* Ids that are tokens, of those that the model has rows for. */
static xp_status prepare(sampler *s, const xp_tokenizer *tokenizer, int64_t vocab) {
    s->vocab = vocab;
    s->ids = malloc((size_t)vocab * sizeof *s->ids);
    s->order = malloc((size_t)vocab * sizeof *s->order);
    s->weights = malloc((size_t)vocab * sizeof *s->weights);
    if (s->ids == NULL || s->order == NULL || s->weights == NULL)
        return xp_error(XP_ENOMEM, "out of memory");
    for (int64_t id = 0; id < vocab; id++)
        if (xp_tokenizer_has(tokenizer, id))
            s->ids[s->n_ids++] = (int32_t)id;
    return s->n_ids > 0 ? XP_OK : xp_error(XP_ECONFIG, "the tokenizer has no token of the model's");
}

static xp_status run(const xp_inference_args *args, const char *prompt, int64_t max_tokens,
                     sampler *s) {
    xp_inference inf;
    XP_TRY(xp_inference_open(args, &inf));
    xp_decoder *decoder = NULL;
    xp_token_list ids = {0};
    xp_status status = prepare(s, inf.tokenizer, inf.arch.vocab_size);
    if (status == XP_OK)
        status = encode_prompt(inf.tokenizer, prompt, &ids);
    if (status == XP_OK)
        status = xp_decoder_create(inf.model, ids.n + max_tokens, &decoder);
    if (status == XP_OK)
        status = generate(inf.tokenizer, decoder, &ids, max_tokens, s);
    xp_decoder_destroy(decoder);
    xp_token_list_free(&ids);
    free(s->ids);
    free(s->order);
    free(s->weights);
    xp_inference_close(&inf);
    return status;
}

int cmd_generate(int argc, char **argv) {
    const char *prompt = "";
    int64_t max_tokens = 100, seed = 0, threads = 0, n_ranks = 0;
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
        {"--device", CLI_STRING, &args.device, "WHERE",
         "auto, cpu or cuda (auto: a GPU that works)", 0, 0},
        {"--dtype", CLI_STRING, &args.dtype, "TYPE", "float32 or bfloat16 (on a GPU bfloat16)", 0,
         0},
        {"--ranks", CLI_INT, &n_ranks, "N", "processes, a GPU each, that share the experts (1)", 1,
         4096},
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
    if (!cli_check_device(args.device, args.dtype))
        return XP_EXIT_USAGE;
    if (use_greedy)
        s.temperature = 0;
    s.seed = (uint64_t)seed;
    args.n_threads = (int)threads;
    /* Tokens are fed in pieces of this length at most; the decoder's room follows from the encoded prompt. */
    args.seq_len = max_tokens + (int64_t)strlen(prompt) + 2;
    if (args.seq_len > MAX_PIECE)
        args.seq_len = MAX_PIECE;
    if (!cli_ranks_join(argc, argv, n_ranks, &s.ranks, &code))
        return code;
    args.comm = s.ranks.comm;
    if (!s.ranks.speaks)
        args.warn = NULL;
    return cli_ranks_end(&s.ranks, run(&args, prompt, max_tokens, &s));
}
