/* expar tokenizer-train: learn a byte-level BPE tokenizer from text. */
#include <stdio.h>
#include "cli.h"
#include "core/file.h"
#include "data/tokenizer.h"
#include "options.h"

#define MAX_FILES 1024

int cmd_tokenizer_train(int argc, char **argv) {
    const char *files[MAX_FILES + 1] = {NULL}, *out = NULL;
    int64_t vocab = 2048, n_merges = 0;
    bool done;
    const cli_option options[] = {
        {"--vocab", CLI_INT, &vocab, "N", "tokens in all: 256 bytes, merges, <|endoftext|> (2048)",
         257, 1 << 24},
        {"--out", CLI_STRING, &out, "DIR", "where tokenizer.json and tokenizer_config.json go", 0,
         0},
    };
    const cli_syntax command = {
        .usage = "expar tokenizer-train FILE... --vocab N --out DIR",
        .about = "Train a byte-level BPE tokenizer (the pre-tokeniser of Qwen3, NFC) on text: "
                 ".txt, .jsonl, .json, "
                 "each also .gz and .zst,\nfolders and globs. Hugging Face tokenizers reads the "
                 "result. The "
                 "same text gives "
                 "the same files.",
        .examples =
            "  expar tokenizer-train assets/text/kjv_train.jsonl --vocab 2048 --out my_tokenizer\n"
            "  expar tokenizer-train 'data/*.jsonl.gz' --vocab 32768 --out my_tokenizer\n",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .max_positionals = MAX_FILES};
    int code = cli_parse(&command, argc, argv, files, &done);
    if (code != 0 || done)
        return code;
    xp_tokenizer_train_args args = {.files = files, .vocab_size = vocab, .out_folder = out};
    while (files[args.n_files] != NULL)
        args.n_files++;
    if (args.n_files == 0 || out == NULL) {
        fprintf(stderr, "error: %s\nusage: %s\n",
                out == NULL ? "--out is missing" : "no files to train on", command.usage);
        return XP_EXIT_USAGE;
    }
    double start = xp_time_s();
    xp_status status = xp_tokenizer_train(&args, &n_merges);
    xp_tokenizer *made = NULL;
    if (status == XP_OK)
        status = xp_tokenizer_load(out, &made);
    if (status != XP_OK)
        return cli_fail(status);
    int64_t size = xp_tokenizer_vocab_size(made);
    xp_tokenizer_destroy(made);
    printf("%s/tokenizer.json: %lld tokens, %lld merges, %.1f s\n", out, (long long)size,
           (long long)n_merges, xp_time_s() - start);
    if (size < vocab)
        fprintf(
            stderr,
            "warning: the text has no more pairs that occur twice: %lld tokens instead of %lld\n",
            (long long)size, (long long)vocab);
    return XP_EXIT_OK;
}
