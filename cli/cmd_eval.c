/* expar eval: loss and perplexity of a model over token ids or text. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cli.h"
#include "core/file.h"
#include "core/text.h"
#include "options.h"
#include "ranks.h"
#include "train/evaluate.h"

typedef struct eval_options {
    const char *hf, *checkpoint, *tokens, *data, *tokenizer, *logits, *device, *dtype;
    cli_ranks ranks;
    int64_t n_ranks, step, seq_len, batch, max_rows, threads;
    bool json;
} eval_options;

static void show_progress(void *context, int64_t done, int64_t rows) {
    double *start = context;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%lld of %lld rows, %.0f s left  %s", (long long)done, (long long)rows,
                (xp_time_s() - *start) * (double)(rows - done) / (double)done,
                done == rows ? "\r\033[K" : "");
}

/* The header of a .npy file (version 1.0): fp32 [rows, seq_len, vocab], padded to 64 bytes. */
static xp_status write_npy_header(FILE *file, int64_t rows, int64_t seq_len, int64_t vocab) {
    char text[128];
    int n = snprintf(text, sizeof text,
                     "{'descr': '<f4', 'fortran_order': False, 'shape': (%lld, %lld, %lld), }",
                     (long long)rows, (long long)seq_len, (long long)vocab);
    unsigned char head[128];
    memset(head, ' ', sizeof head);
    memcpy(head, "\x93NUMPY\x01\x00", 8);
    head[8] = sizeof head - 10;
    head[9] = 0;
    memcpy(head + 10, text, (size_t)n);
    head[sizeof head - 1] = '\n';
    if (fwrite(head, 1, sizeof head, file) != sizeof head)
        return xp_error(XP_EIO, "cannot write the logits: %s", strerror(errno));
    return XP_OK;
}

static void print_result(const eval_options *o, const xp_inference *inf, const xp_evaluation *with,
                         const xp_evaluation *without) {
    if (o->json) {
        xp_text t = {0};
        xp_text_puts(&t, "{\"model\": ");
        xp_text_add_json(&t, inf->source, strlen(inf->source));
        xp_text_printf(&t,
                       ", \"tokens\": %lld, \"rows\": %lld, \"loss\": ", (long long)with->n_tokens,
                       (long long)with->n_rows);
        xp_text_add_json_double(&t, with->loss);
        xp_text_puts(&t, ", \"perplexity\": ");
        xp_text_add_json_double(&t, exp(with->loss));
        if (without != NULL) {
            xp_text_puts(&t, ", \"loss_without_expert_bias\": ");
            xp_text_add_json_double(&t, without->loss);
        }
        printf("%s}\n", t.data);
        xp_text_free(&t);
        return;
    }
    printf("%s: loss %.8f, perplexity %.4f over %lld tokens in %lld rows\n", inf->source,
           with->loss, exp(with->loss), (long long)with->n_tokens, (long long)with->n_rows);
    if (without != NULL)
        printf("without the trained expert bias, as Hugging Face computes it: loss %.8f "
               "(%+.8f)\n",
               without->loss, without->loss - with->loss);
}

static xp_status evaluate_to(const eval_options *o, xp_inference *inf, const xp_dataset *dataset,
                             FILE *logits) {
    double start = xp_time_s();
    xp_evaluate_args args = {.inference = inf,
                             .dataset = dataset,
                             .n_rows = o->batch,
                             .max_rows = o->max_rows,
                             .logits = logits,
                             .progress = o->ranks.speaks ? show_progress : NULL,
                             .context = &start};
    xp_evaluation with, without;
    if (logits != NULL) {
        int64_t rows = xp_dataset_n_rows(dataset);
        XP_TRY(write_npy_header(logits, o->max_rows >= 0 && o->max_rows < rows ? o->max_rows : rows,
                                o->seq_len, inf->arch.vocab_size));
    }
    XP_TRY(xp_evaluate(&args, &with));
    if (inf->has_bias) {
        args.logits = NULL;
        XP_TRY(xp_inference_use_bias(inf, false));
        XP_TRY(xp_evaluate(&args, &without));
    }
    if (o->ranks.speaks)
        print_result(o, inf, &with, inf->has_bias ? &without : NULL);
    return XP_OK;
}

/* The logits file appears under its name when it is whole. */
static xp_status evaluate(const eval_options *o, xp_inference *inf, const xp_dataset *dataset) {
    if (o->logits == NULL || !o->ranks.speaks)
        return evaluate_to(o, inf, dataset, NULL);
    char tmp[4096];
    snprintf(tmp, sizeof tmp, "%s.tmp", o->logits);
    FILE *file = fopen(tmp, "wbe");
    if (file == NULL)
        return xp_error(XP_EIO, "cannot create %s: %s", tmp, strerror(errno));
    xp_status status = evaluate_to(o, inf, dataset, file);
    if (fclose(file) != 0 && status == XP_OK)
        status = xp_error(XP_EIO, "cannot write %s: %s", tmp, strerror(errno));
    if (status == XP_OK && rename(tmp, o->logits) != 0)
        status = xp_error(XP_EIO, "cannot rename %s: %s", tmp, strerror(errno));
    if (status != XP_OK)
        unlink(tmp);
    return status;
}

static xp_status run(const eval_options *o) {
    xp_inference_args open = {.comm = o->ranks.comm,
                              .hf = o->hf,
                              .checkpoint = o->checkpoint,
                              .step = o->step,
                              .tokenizer = o->tokenizer,
                              .need_tokenizer = o->data != NULL,
                              .n_rows = o->batch,
                              .seq_len = o->seq_len,
                              .keep_logits = o->logits != NULL,
                              .device = o->device,
                              .dtype = o->dtype,
                              .n_threads = (int)o->threads,
                              .warn = o->ranks.speaks ? cli_warn : NULL};
    xp_inference inf;
    XP_TRY(xp_inference_open(&open, &inf));
    char cache[] = "/tmp/expar-eval-XXXXXX";
    xp_dataset *dataset = NULL;
    xp_status status = XP_OK;
    if (o->data != NULL && mkdtemp(cache) == NULL)
        status = xp_error(XP_EIO, "cannot make a temporary folder: %s", strerror(errno));
    xp_dataset_args data = {.kind = o->data != NULL ? "text" : "tokens",
                            .path = o->data != NULL ? o->data : o->tokens,
                            .tokenizer = inf.tokenizer,
                            .cache_folder = cache,
                            .vocab_size = inf.arch.vocab_size,
                            .seq_len = o->seq_len,
                            .note_borders = true,
                            .eos_id = -1};
    if (status == XP_OK)
        status = xp_dataset_open(&data, &dataset);
    if (status == XP_OK)
        status = evaluate(o, &inf, dataset);
    xp_dataset_close(dataset);
    if (o->data != NULL && xp_folder_remove(cache) != XP_OK && status == XP_OK)
        fprintf(stderr, "warning: %s\n", xp_last_error());
    xp_inference_close(&inf);
    return status;
}

int cmd_eval(int argc, char **argv) {
    eval_options o = {.step = -1, .seq_len = 256, .batch = 4, .max_rows = -1};
    bool done;
    const cli_option options[] = {
        {"--hf", CLI_STRING, &o.hf, "DIR", "a Hugging Face folder; or", 0, 0},
        {"--checkpoint", CLI_STRING, &o.checkpoint, "DIR",
         "a run's dump folder, its checkpoint folder or a step-N folder", 0, 0},
        {"--step", CLI_INT, &o.step, "N", "which checkpoint; default the newest complete one", 0,
         1e15},
        {"--tokens", CLI_STRING, &o.tokens, "FILE", "raw little-endian uint32 ids (.bin); or", 0,
         0},
        {"--data", CLI_STRING, &o.data, "FILE",
         "text: .txt, .jsonl, .json, each also .gz and .zst; a file, folder or glob", 0, 0},
        {"--tokenizer", CLI_STRING, &o.tokenizer, "DIR", "for --data; default: the model's own", 0,
         0},
        {"--seq", CLI_INT, &o.seq_len, "S", "tokens of a row (256); rows are S + 1 ids", 1,
         1 << 20},
        {"--batch", CLI_INT, &o.batch, "B", "rows at a time (4)", 1, 65536},
        {"--rows", CLI_INT, &o.max_rows, "N", "the first N rows only", 0, 1e15},
        {"--logits", CLI_STRING, &o.logits, "FILE", "write fp32 logits [rows, S, vocab] as .npy", 0,
         0},
        {"--device", CLI_STRING, &o.device, "WHERE", "auto, cpu or cuda (auto: a GPU that works)",
         0, 0},
        {"--dtype", CLI_STRING, &o.dtype, "TYPE", "float32 or bfloat16 (on a GPU bfloat16)", 0, 0},
        {"--ranks", CLI_INT, &o.n_ranks, "N", "processes, a GPU each, that share the experts (1)",
         1, 4096},
        {"--threads", CLI_INT, &o.threads, "N", "default: all cores", 1, 4096},
        {"--json", CLI_FLAG, &o.json, NULL, "one JSON object", 0, 0},
    };
    const cli_syntax command = {
        .usage =
            "expar eval (--hf DIR | --checkpoint DIR) (--tokens FILE.bin | --data FILE) [options]",
        .about =
            "Mean cross-entropy and perplexity of a model, in fp32. With a trained expert bias it "
            "also tells what the\nbias matters.",
        .examples =
            "  expar eval --hf my_model --tokens ids.bin --seq 512 --logits out.npy\n"
            "  expar eval --checkpoint outputs/debug_moe --data assets/text/kjv_valid.jsonl\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0]};
    int code = cli_parse(&command, argc, argv, NULL, &done);
    if (code != 0 || done)
        return code;
    if ((o.hf == NULL) == (o.checkpoint == NULL) || (o.tokens == NULL) == (o.data == NULL)) {
        fprintf(stderr,
                "error: give one of --hf and --checkpoint, and one of --tokens and --data\n"
                "usage: %s\n",
                command.usage);
        return XP_EXIT_USAGE;
    }
    if (!cli_check_device(o.device, o.dtype))
        return XP_EXIT_USAGE;
    if (!cli_ranks_join(argc, argv, o.n_ranks, &o.ranks, &code))
        return code;
    return cli_ranks_end(&o.ranks, run(&o));
}
