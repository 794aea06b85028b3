#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "data/bpe_train.h"
#include "data/documents.h"
#include "data/tokenizer_internal.h"

#define END_OF_TEXT "<|endoftext|>"
#define N_SPECIAL   1

static xp_status count_documents(xp_word_counts *counts, xp_documents *documents) {
    for (;;) {
        char *text = NULL;
        size_t n = 0;
        XP_TRY(xp_documents_next(documents, &text, &n));
        if (!text)
            return XP_OK;
        xp_status status = xp_word_counts_add(counts, text, n);
        free(text);
        XP_TRY(status);
    }
}

static xp_status count_path(xp_word_counts *counts, const char *path) {
    xp_data_files files = {0};
    xp_documents *documents = NULL;
    XP_TRY(xp_data_files_find(path, xp_data_text_endings(), &files));
    xp_status status = xp_documents_open(&(xp_documents_args){.files = &files}, &documents);
    if (status == XP_OK)
        status = count_documents(counts, documents);
    xp_documents_close(documents);
    xp_data_files_free(&files);
    return status;
}

/* A token as the files spell it: every byte by the character that stands for it. */
static void add_token_text(xp_text *out, const xp_bpe_vocabulary *v, int32_t id) {
    for (int64_t i = v->offsets[id]; i < v->offsets[id + 1]; i++) {
        char bytes[4];
        int used = xp_utf8_encode(xp_byte_level_char((unsigned char)v->bytes.data[i]), bytes);
        xp_text_add(out, bytes, (size_t)used);
    }
}

static void add_token_json(xp_text *out, xp_text *token, const xp_bpe_vocabulary *v, int32_t left,
                           int32_t right) {
    xp_text_clear(token);
    add_token_text(token, v, left);
    if (right >= 0) {
        xp_text_puts(token, " ");
        add_token_text(token, v, right);
    }
    xp_text_add_json(out, token->data, token->length);
}

static void write_tokenizer_json(xp_text *out, const xp_bpe_vocabulary *v) {
    static const char byte_level[] = "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
                                     "\"trim_offsets\": false, \"use_regex\": false}";
    xp_text token = {0};
    xp_text_printf(out,
                   "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n"
                   "  \"added_tokens\": [\n    {\"id\": %d, \"content\": \"" END_OF_TEXT
                   "\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
                   "\"normalized\": false, \"special\": true}\n  ],\n"
                   "  \"normalizer\": {\"type\": \"NFC\"},\n"
                   "  \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [\n"
                   "    {\"type\": \"Split\", \"pattern\": {\"Regex\": ",
                   v->n_tokens);
    xp_text_add_json(out, xp_qwen_pattern(), strlen(xp_qwen_pattern()));
    xp_text_printf(out,
                   "}, \"behavior\": \"Isolated\", \"invert\": false},\n    %s\n  ]},\n"
                   "  \"post_processor\": %s,\n  \"decoder\": %s,\n",
                   byte_level, byte_level, byte_level);
    xp_text_puts(
        out,
        "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
        "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n"
        "    \"fuse_unk\": false,\n    \"byte_fallback\": false,\n    \"ignore_merges\": false,\n"
        "    \"vocab\": {");
    for (int32_t id = 0; id < v->n_tokens; id++) {
        xp_text_puts(out, id ? ",\n      " : "\n      ");
        add_token_json(out, &token, v, id, -1);
        xp_text_printf(out, ": %d", id);
    }
    xp_text_puts(out, "\n    },\n    \"merges\": [");
    for (int32_t m = 0; m < v->n_merges; m++) {
        xp_text_puts(out, m ? ",\n      " : "\n      ");
        add_token_json(out, &token, v, v->merges[m].left, v->merges[m].right);
    }
    xp_text_puts(out, v->n_merges ? "\n    ]\n  }\n}\n" : "]\n  }\n}\n");
    out->failed |= token.failed;
    xp_text_free(&token);
}

static void write_config_json(xp_text *out, const xp_bpe_vocabulary *v) {
    xp_text_printf(out,
                   "{\n  \"added_tokens_decoder\": {\n    \"%d\": {\"content\": \"" END_OF_TEXT
                   "\", \"lstrip\": false, \"normalized\": false, \"rstrip\": false, "
                   "\"single_word\": false, \"special\": true}\n  },\n"
                   "  \"bos_token\": null,\n  \"eos_token\": \"" END_OF_TEXT
                   "\",\n  \"pad_token\": \"" END_OF_TEXT "\",\n  \"unk_token\": null,\n"
                   "  \"clean_up_tokenization_spaces\": false,\n"
                   "  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n",
                   v->n_tokens);
}

static xp_status write_file(const char *folder, const char *name, const xp_text *text) {
    char *path = xp_path_join(folder, name);
    if (!path || text->failed) {
        free(path);
        return xp_error(XP_ENOMEM, "no memory to write %s", name);
    }
    xp_status status = xp_file_write_atomic(path, text->data, text->length);
    free(path);
    return status;
}

/* The configuration first: a folder with a tokenizer.json is complete. */
static xp_status write_folder(const char *folder, const xp_bpe_vocabulary *v) {
    xp_text text = {0};
    write_config_json(&text, v);
    xp_status status = xp_folder_create(folder);
    if (status == XP_OK)
        status = write_file(folder, "tokenizer_config.json", &text);
    if (status == XP_OK) {
        xp_text_clear(&text);
        write_tokenizer_json(&text, v);
        status = write_file(folder, "tokenizer.json", &text);
    }
    xp_text_free(&text);
    return status;
}

xp_status xp_tokenizer_train(const xp_tokenizer_train_args *args, int64_t *n_merges) {
    if (args->vocab_size < 256 + N_SPECIAL || args->vocab_size > XP_TOKENIZER_MAX_ID)
        return xp_error(XP_EINVAL,
                        "a vocabulary of %lld: from %d (256 bytes and " END_OF_TEXT ") to %d",
                        (long long)args->vocab_size, 256 + N_SPECIAL, XP_TOKENIZER_MAX_ID);
    if (args->n_files < 1)
        return xp_error(XP_EINVAL, "no text to train on");
    xp_word_counts counts;
    xp_bpe_vocabulary vocabulary = {0};
    XP_TRY(xp_word_counts_init(&counts));
    xp_status status = XP_OK;
    for (int i = 0; i < args->n_files && status == XP_OK; i++)
        status = count_path(&counts, args->files[i]);
    if (status == XP_OK && counts.n_words == 0)
        status = xp_error(XP_EFORMAT, "no text in %s%s", args->files[0],
                          args->n_files > 1 ? " and the other files" : "");
    if (status == XP_OK)
        status = xp_bpe_train(&counts, (int32_t)args->vocab_size - N_SPECIAL, &vocabulary);
    xp_word_counts_free(&counts);
    if (status == XP_OK)
        status = write_folder(args->out_folder, &vocabulary);
    if (status == XP_OK)
        *n_merges = vocabulary.n_merges;
    xp_bpe_vocabulary_free(&vocabulary);
    return status;
}
