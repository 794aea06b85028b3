/**
 * Hugging Face tokenizer.json: byte-level BPE with its pre-tokeniser regex, NFC, added tokens,
 * merges as strings or pairs. A tokenizer is immutable after loading; encode and decode may run on
 * many threads at once, each with its own scratch.
 */
#ifndef XP_DATA_TOKENIZER_H
#define XP_DATA_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "expar/status.h"

typedef struct xp_tokenizer xp_tokenizer;

/** @param path tokenizer.json, or a folder that holds one. BOS and EOS come from the files beside it:
 * tokenizer_config.json, special_tokens_map.json, EOS also from config.json and generation_config.json.
 *  @return XP_OK; XP_EIO; XP_EFORMAT with the path and the JSON place; XP_ENOTSUP naming a model or
 * step that is not byte-level BPE */
XP_NODISCARD xp_status xp_tokenizer_load(const char *path, xp_tokenizer **tokenizer);
void xp_tokenizer_destroy(xp_tokenizer *tokenizer);

typedef struct xp_token_list {
    int32_t *ids;
    int64_t n, capacity;
} xp_token_list;
void xp_token_list_free(xp_token_list *list);

/** Append the ids of `text` to `list`. Invalid UTF-8: each maximal invalid part becomes U+FFFD
 * (docs/reference/tokenizers.md). Added tokens are recognised. */
XP_NODISCARD xp_status xp_tokenizer_encode(const xp_tokenizer *tokenizer, const char *text,
                                           size_t n_bytes, xp_token_list *list);
/** The same with what the post-processor puts around a text: what Hugging Face gives for
 * add_special_tokens = true. */
XP_NODISCARD xp_status xp_tokenizer_encode_special(const xp_tokenizer *tokenizer, const char *text,
                                                   size_t n_bytes, xp_token_list *list);
/** One training document: BOS and EOS around it, each when the tokenizer defines one. */
XP_NODISCARD xp_status xp_tokenizer_encode_document(const xp_tokenizer *tokenizer, const char *text,
                                                    size_t n_bytes, xp_token_list *list);
/** Bytes of the ids; caller frees *text (NUL added past the end). skip_special leaves special added
 * tokens out. */
XP_NODISCARD xp_status xp_tokenizer_decode(const xp_tokenizer *tokenizer, const int32_t *ids,
                                           int64_t n, bool skip_special, char **text,
                                           size_t *n_bytes);
/** One past the largest id. */
int64_t xp_tokenizer_vocab_size(const xp_tokenizer *tokenizer);
/** -1 when the tokenizer defines none. */
int32_t xp_tokenizer_bos(const xp_tokenizer *tokenizer);
int32_t xp_tokenizer_eos(const xp_tokenizer *tokenizer);
/** Some id is a token; models may have rows for ids that are none. */
bool xp_tokenizer_has(const xp_tokenizer *tokenizer, int64_t id);
/** What people must know of documents' borders: no EOS (*warning), or one that tokenizer_config.json does not name; NULL
 * when there is nothing to say. Lives as long as the tokenizer. */
const char *xp_tokenizer_border_note(const xp_tokenizer *tokenizer, bool *warning);
/** 64-bit hash of everything that decides ids: part of the token cache's key. */
uint64_t xp_tokenizer_hash(const xp_tokenizer *tokenizer);

/** Train byte-level BPE on text files; writes tokenizer.json and tokenizer_config.json into
 * `out_folder`. */
typedef struct xp_tokenizer_train_args {
    int n_files;
    const char *const *files; /* .txt, .jsonl, .json.gz, .jsonl.gz */
    int64_t vocab_size;       /* with the 256 bytes and the special tokens */
    const char *out_folder;
} xp_tokenizer_train_args;
XP_NODISCARD xp_status xp_tokenizer_train(const xp_tokenizer_train_args *args, int64_t *n_merges);

#endif
