#include "data/tokenizer_load.h"

#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "data/nfc.h"

/* A whole, non-negative number below the limit on ids; -1 otherwise. */
static int32_t json_id(const json_t *value) {
    if (!json_is_integer(value))
        return -1;
    json_int_t id = json_integer_value(value);
    return id >= 0 && id < XP_TOKENIZER_MAX_ID ? (int32_t)id : -1;
}

/* A token while the file is read: its JSON string is borrowed. */
typedef struct entry {
    const char *text;
    size_t n;
    uint8_t kind;      /* XP_TOKEN_* */
    bool model, bytes; /* part of the model; stands for bytes */
} entry;

typedef struct reader {
    xp_tokenizer *t;
    const json_t *root, *vocab, *added;
    bool *repeats;  /* [added] the same content stands earlier in the list: only the first counts */
    entry *entries; /* [t->n_tokens] */
    xp_bpe_merge *merges;
    int32_t n_merges;
} reader;

static xp_status find_repeats(reader *r) {
    size_t n = json_array_size(r->added);
    json_t *seen = json_object();
    r->repeats = calloc(n + 1, sizeof(*r->repeats));
    bool failed = !r->repeats || !seen;
    for (size_t i = 0; i < n && !failed; i++) {
        const char *content = xp_json_text(json_array_get(r->added, i), "content");
        r->repeats[i] = json_object_get(seen, content) != NULL;
        failed = json_object_set_new_nocheck(seen, content, json_true()) != 0;
    }
    json_decref(seen);
    return failed ? xp_error(XP_ENOMEM, "no memory for added tokens") : XP_OK;
}

static xp_status find_n_tokens(reader *r) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)r->vocab, key, value) {
        int32_t id = json_id(value);
        if (id < 0)
            return xp_error(XP_EFORMAT,
                            "model.vocab[\"%.60s\"]: not an id (a whole number below %d)", key,
                            XP_TOKENIZER_MAX_ID);
        if (id >= r->t->n_tokens)
            r->t->n_tokens = id + 1;
    }
    for (size_t i = 0; i < json_array_size(r->added); i++) {
        const json_t *token = json_array_get(r->added, i);
        int32_t id = json_id(json_object_get(token, "id"));
        const json_t *content = json_object_get(token, "content");
        if (id < 0 || !json_is_string(content) || json_string_length(content) == 0)
            return xp_error(XP_EFORMAT, "added_tokens[%zu]: needs an \"id\" and a \"content\"", i);
        if (!r->repeats[i] && id >= r->t->n_tokens)
            r->t->n_tokens = id + 1;
    }
    if (r->t->n_tokens == 0)
        return xp_error(XP_EFORMAT, "model.vocab: no tokens");
    return XP_OK;
}

static xp_status read_entries(reader *r) {
    r->entries = calloc((size_t)r->t->n_tokens, sizeof(*r->entries));
    if (!r->entries)
        return xp_error(XP_ENOMEM, "no memory for %d tokens", r->t->n_tokens);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)r->vocab, key, value) {
        entry *e = &r->entries[json_id(value)];
        if (e->text)
            return xp_error(XP_EFORMAT, "model.vocab: id %d belongs to \"%.60s\" and to \"%.60s\"",
                            json_id(value), e->text, key);
        *e = (entry){.text = key, .n = strlen(key), .kind = XP_TOKEN_MODEL, .model = true};
    }
    for (size_t i = 0; i < json_array_size(r->added); i++) {
        if (r->repeats[i])
            continue;
        const json_t *token = json_array_get(r->added, i);
        int32_t id = json_id(json_object_get(token, "id"));
        const json_t *content = json_object_get(token, "content");
        const json_t *known = json_object_get(r->vocab, json_string_value(content));
        entry *e = &r->entries[id];
        if (known && json_id(known) != id)
            return xp_error(XP_EFORMAT,
                            "added_tokens[%zu]: \"%.60s\" has id %d here and %d in model.vocab", i,
                            json_string_value(content), id, json_id(known));
        if (e->text && (e->n != json_string_length(content) ||
                        memcmp(e->text, json_string_value(content), e->n) != 0))
            return xp_error(XP_EFORMAT, "added_tokens[%zu]: id %d belongs to \"%.60s\" already", i,
                            id, e->text);
        bool model = e->model;
        *e = (entry){.text = json_string_value(content),
                     .n = json_string_length(content),
                     .kind = json_is_true(json_object_get(token, "special")) ? XP_TOKEN_SPECIAL
                                                                             : XP_TOKEN_ADDED,
                     .model = model};
    }
    return XP_OK;
}

/* Both byte tables: what a token prints, and what merging sees. */
static xp_status build_bytes(reader *r) {
    xp_tokenizer *t = r->t;
    size_t n = (size_t)t->n_tokens;
    t->offsets = malloc((n + 1) * sizeof(*t->offsets));
    t->model_offsets = malloc((n + 1) * sizeof(*t->model_offsets));
    t->kinds = malloc(n);
    if (!t->offsets || !t->model_offsets || !t->kinds)
        return xp_error(XP_ENOMEM, "no memory for %d tokens", t->n_tokens);
    xp_text all = {0}, model = {0}, one = {0};
    xp_text_puts(&all, "");
    xp_text_puts(&model, "");
    for (size_t i = 0; i < n; i++) {
        entry *e = &r->entries[i];
        t->offsets[i] = (int64_t)all.length;
        t->model_offsets[i] = (int64_t)model.length;
        t->kinds[i] = e->kind;
        if (!e->text)
            continue;
        xp_text_clear(&one);
        e->bytes = e->model && xp_byte_level_decode(e->text, e->n, &one) && one.length > 0;
        if (e->bytes)
            xp_text_add(&model, one.data, one.length);
        if (e->bytes && e->kind == XP_TOKEN_MODEL)
            xp_text_add(&all, one.data, one.length);
        else
            xp_text_add(&all, e->text, e->n);
    }
    t->offsets[n] = (int64_t)all.length;
    t->model_offsets[n] = (int64_t)model.length;
    t->bytes = all.data;
    t->model_bytes = model.data;
    bool failed = all.failed || model.failed || one.failed;
    xp_text_free(&one);
    return failed ? xp_error(XP_ENOMEM, "no memory for %d tokens", t->n_tokens) : XP_OK;
}

/* The two sides of merges[i], as strings that need not be terminated. */
static bool merge_sides(const json_t *merge, const char *sides[2], size_t lengths[2]) {
    if (json_is_array(merge)) {
        for (size_t k = 0; k < 2; k++) {
            const json_t *side = json_array_get(merge, k);
            if (!json_is_string(side))
                return false;
            sides[k] = json_string_value(side);
            lengths[k] = json_string_length(side);
        }
        return json_array_size(merge) == 2;
    }
    const char *text = json_string_value(merge);
    const char *space = text ? strchr(text, ' ') : NULL;
    if (!space || strchr(space + 1, ' '))
        return false;
    sides[0] = text;
    lengths[0] = (size_t)(space - text);
    sides[1] = space + 1;
    lengths[1] = strlen(space + 1);
    return true;
}

static int32_t vocab_id(const reader *r, xp_text *key, const char *a, size_t n_a, const char *b,
                        size_t n_b) {
    xp_text_clear(key);
    xp_text_add(key, a, n_a);
    xp_text_add(key, b, n_b);
    return key->failed ? -1 : json_id(json_object_get(r->vocab, key->data));
}

static xp_status read_merges(reader *r, const json_t *merges) {
    size_t n = json_array_size(merges);
    if (!json_is_array(merges) || n >= (size_t)XP_TOKENIZER_MAX_ID)
        return xp_error(XP_EFORMAT, "model.merges: not an array of fewer than %d merges",
                        XP_TOKENIZER_MAX_ID);
    r->merges = malloc((n + 1) * sizeof(*r->merges));
    if (!r->merges)
        return xp_error(XP_ENOMEM, "no memory for %zu merges", n);
    xp_text key = {0};
    xp_status status = XP_OK;
    for (size_t i = 0; i < n && status == XP_OK; i++) {
        const char *sides[2];
        size_t lengths[2];
        const json_t *merge = json_array_get(merges, i);
        if (json_is_string(merge) && !strncmp(json_string_value(merge), "#version", 8))
            continue;
        if (!merge_sides(merge, sides, lengths)) {
            status =
                xp_error(XP_EFORMAT, "model.merges[%zu]: neither \"a b\" nor [\"a\", \"b\"]", i);
            break;
        }
        xp_bpe_merge m = {.left = vocab_id(r, &key, sides[0], lengths[0], "", 0),
                          .right = vocab_id(r, &key, "", 0, sides[1], lengths[1]),
                          .result = vocab_id(r, &key, sides[0], lengths[0], sides[1], lengths[1])};
        if (m.left < 0 || m.right < 0 || m.result < 0)
            status = xp_error(
                XP_EFORMAT,
                "model.merges[%zu]: \"%.*s\" and \"%.*s\" or what they make is not in model.vocab",
                i, (int)(lengths[0] < 60 ? lengths[0] : 60), sides[0],
                (int)(lengths[1] < 60 ? lengths[1] : 60), sides[1]);
        else if (r->entries[m.left].bytes && r->entries[m.right].bytes)
            r->merges[r->n_merges++] = m; /* others can never come up: words are bytes */
    }
    xp_text_free(&key);
    return status;
}

static xp_status build_bpe(reader *r, bool ignore_merges) {
    xp_tokenizer *t = r->t;
    xp_bpe_args args = {.bytes = t->model_bytes,
                        .offsets = t->model_offsets,
                        .n_tokens = t->n_tokens,
                        .merges = r->merges,
                        .n_merges = r->n_merges,
                        .ignore_merges = ignore_merges};
    memset(args.byte_ids, 0xff, sizeof(args.byte_ids));
    for (int32_t id = 0; id < t->n_tokens; id++)
        if (t->model_offsets[id + 1] - t->model_offsets[id] == 1)
            args.byte_ids[(unsigned char)t->model_bytes[t->model_offsets[id]]] = id;
    for (int b = 0; b < 256; b++)
        if (args.byte_ids[b] < 0)
            return xp_error(XP_ENOTSUP,
                            "model.vocab: no token for byte 0x%02x; only vocabularies of "
                            "byte-level BPE are supported",
                            b);
    return xp_bpe_create(&args, &t->bpe);
}

static xp_status read_model(reader *r) {
    static const char *const unsupported[] = {"dropout", "continuing_subword_prefix",
                                              "end_of_word_suffix", "byte_fallback"};
    const json_t *model = json_object_get(r->root, "model");
    if (!json_is_object(model))
        return xp_tokenizer_refuse(XP_EFORMAT, "model", "missing or not an object");
    const json_t *type = json_object_get(model, "type");
    if (type && (!json_is_string(type) || strcmp(json_string_value(type), "BPE") != 0))
        return xp_error(XP_ENOTSUP,
                        "model.type: \"%.40s\" is not supported; only byte-level BPE is",
                        xp_json_text(model, "type"));
    for (size_t i = 0; i < sizeof(unsupported) / sizeof(unsupported[0]); i++)
        if (xp_json_is_set(json_object_get(model, unsupported[i])))
            return xp_error(XP_ENOTSUP, "model.%s: not supported; only byte-level BPE is",
                            unsupported[i]);
    r->vocab = json_object_get(model, "vocab");
    r->added = json_object_get(r->root, "added_tokens");
    if (!json_is_object(r->vocab))
        return xp_tokenizer_refuse(XP_EFORMAT, "model.vocab", "missing or not an object");
    if (xp_json_is_set(r->added) && !json_is_array(r->added))
        return xp_tokenizer_refuse(XP_EFORMAT, "added_tokens", "not an array");
    XP_TRY(find_repeats(r));
    XP_TRY(find_n_tokens(r));
    XP_TRY(read_entries(r));
    XP_TRY(build_bytes(r));
    XP_TRY(read_merges(r, json_object_get(model, "merges")));
    return build_bpe(r, json_is_true(json_object_get(model, "ignore_merges")));
}

static xp_status read_added_tokens(reader *r) {
    xp_tokenizer *t = r->t;
    XP_TRY(xp_added_tokens_create(&t->added_raw));
    XP_TRY(xp_added_tokens_create(&t->added_normalized));
    xp_text normalized = {0};
    xp_status status = XP_OK;
    for (size_t i = 0; i < json_array_size(r->added) && status == XP_OK; i++) {
        if (r->repeats[i])
            continue;
        const json_t *token = json_array_get(r->added, i);
        const char *content = xp_json_text(token, "content");
        size_t n = strlen(content);
        xp_added_token added = {.id = json_id(json_object_get(token, "id")),
                                .single_word = json_is_true(json_object_get(token, "single_word")),
                                .lstrip = json_is_true(json_object_get(token, "lstrip")),
                                .rstrip = json_is_true(json_object_get(token, "rstrip"))};
        bool after = json_is_true(json_object_get(token, "normalized")), changed = false;
        if (after && t->nfc)
            status = xp_nfc_normalize(content, n, &normalized, &changed);
        if (status == XP_OK)
            status = xp_added_tokens_add(after ? t->added_normalized : t->added_raw,
                                         changed ? normalized.data : content,
                                         changed ? normalized.length : n, &added);
    }
    xp_text_free(&normalized);
    return status;
}

static xp_status read_tokenizer(xp_tokenizer *t, const char *path) {
    json_t *root = NULL;
    XP_TRY(xp_tokenizer_parse_json(path, &t->hash, &root));
    reader r = {.t = t, .root = root};
    xp_status status = read_model(&r);
    if (status == XP_OK)
        status = xp_tokenizer_read_steps(t, root);
    if (status == XP_OK)
        status = read_added_tokens(&r);
    if (status == XP_OK)
        status = xp_tokenizer_read_template(t, root);
    free(r.repeats);
    free(r.entries);
    free(r.merges);
    json_decref(root);
    return status;
}

static xp_status split_path(const char *path, char **folder, char **file) {
    bool is_folder = false;
    XP_TRY(xp_path_is_folder(path, &is_folder));
    if (is_folder) {
        *folder = strdup(path);
        *file = xp_path_join(path, "tokenizer.json");
    } else {
        const char *slash = strrchr(path, '/');
        *folder = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
        *file = strdup(path);
    }
    return *folder && *file ? XP_OK : xp_error(XP_ENOMEM, "no memory for a path");
}

xp_status xp_tokenizer_load(const char *path, xp_tokenizer **tokenizer) {
    char *folder = NULL, *file = NULL;
    xp_tokenizer *t = calloc(1, sizeof(*t));
    xp_status status =
        t ? split_path(path, &folder, &file) : xp_error(XP_ENOMEM, "no memory for a tokenizer");
    if (status == XP_OK) {
        t->bos = t->eos = -1;
        t->hash = 0x243f6a8885a308d3u;
        status = read_tokenizer(t, file);
        if (status != XP_OK && !strstr(xp_last_error(), file))
            status = xp_error_context(status, "%s", file);
    }
    if (status == XP_OK)
        status = xp_tokenizer_read_names(t, folder);
    free(folder);
    free(file);
    if (status != XP_OK) {
        xp_tokenizer_destroy(t);
        return status;
    }
    t->hash = xp_tokenizer_hash_bytes(t->hash, &t->bos, sizeof(t->bos));
    t->hash = xp_tokenizer_hash_bytes(t->hash, &t->eos, sizeof(t->eos));
    *tokenizer = t;
    return XP_OK;
}
