#include <stdlib.h>
#include <string.h>
#include "data/tokenizer_load.h"

/* What ByteLevel splits with when it splits by itself. */
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

#define PLACE_BYTES 160
#define MAX_NESTING 8

static xp_status read_normalizer(xp_tokenizer *t, const json_t *step, const char *place,
                                 int depth) {
    if (!xp_json_is_set(step))
        return XP_OK;
    const char *type = xp_json_text(step, "type");
    if (!strcmp(type, "NFC")) {
        t->nfc = true;
        return XP_OK;
    }
    if (!strcmp(type, "Sequence") && depth < MAX_NESTING) {
        const json_t *steps = json_object_get(step, "normalizers");
        if (!json_is_array(steps))
            return xp_tokenizer_refuse(XP_EFORMAT, place, "\"normalizers\" is not an array");
        for (size_t i = 0; i < json_array_size(steps); i++) {
            char inner[PLACE_BYTES];
            snprintf(inner, sizeof(inner), "%.100s.normalizers[%zu]", place, i);
            XP_TRY(read_normalizer(t, json_array_get(steps, i), inner, depth + 1));
        }
        return XP_OK;
    }
    return xp_error(json_is_object(step) && *type ? XP_ENOTSUP : XP_EFORMAT,
                    "%s: \"%.40s\" is not supported; NFC or null is", place, type);
}

static xp_status add_step(xp_tokenizer *t, const char *place, xp_split_step step) {
    if (t->n_steps == XP_TOKENIZER_MAX_STEPS) {
        xp_pattern_destroy(step.pattern);
        return xp_tokenizer_refuse(XP_ENOTSUP, place, "too many steps");
    }
    t->steps[t->n_steps++] = step;
    return XP_OK;
}

static xp_status add_regex(xp_tokenizer *t, const char *place, const char *regex) {
    xp_split_step step = {.keep_matches = true, .keep_gaps = true};
    xp_status status = xp_pattern_compile(regex, strlen(regex), &step.pattern);
    return status == XP_OK ? add_step(t, place, step) : xp_error_context(status, "%s", place);
}

static xp_status read_split(xp_tokenizer *t, const json_t *step, const char *place) {
    const json_t *pattern = json_object_get(step, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    const json_t *string = json_object_get(pattern, "String");
    const char *behavior = xp_json_text(step, "behavior");
    bool isolated = !strcmp(behavior, "Isolated"), removed = !strcmp(behavior, "Removed");
    bool invert = json_is_true(json_object_get(step, "invert"));
    if (!isolated && !removed)
        return xp_error(*behavior ? XP_ENOTSUP : XP_EFORMAT,
                        "%s.behavior: \"%.40s\" is not supported; \"Isolated\" and \"Removed\" are",
                        place, behavior);
    if (json_is_string(regex) == json_is_string(string))
        return xp_tokenizer_refuse(XP_EFORMAT, place,
                                   "\"pattern\" needs either \"Regex\" or \"String\"");
    xp_split_step made = {.keep_matches = isolated || invert, .keep_gaps = isolated || !invert};
    const json_t *text = json_is_string(regex) ? regex : string;
    if (json_string_length(text) == 0)
        return xp_tokenizer_refuse(XP_EFORMAT, place, "an empty pattern");
    xp_status status =
        json_is_string(regex)
            ? xp_pattern_compile(json_string_value(text), json_string_length(text), &made.pattern)
            : xp_pattern_compile_literal(json_string_value(text), json_string_length(text),
                                         &made.pattern);
    return status == XP_OK ? add_step(t, place, made)
                           : xp_error_context(status, "%s.pattern", place);
}

static xp_status read_byte_level(xp_tokenizer *t, const json_t *step, const char *place) {
    const json_t *use_regex = json_object_get(step, "use_regex");
    const json_t *prefix = json_object_get(step, "add_prefix_space");
    if ((use_regex && !json_is_boolean(use_regex)) || (prefix && !json_is_boolean(prefix)))
        return xp_tokenizer_refuse(XP_EFORMAT, place,
                                   "\"use_regex\" and \"add_prefix_space\" are true or false");
    if (!json_is_false(prefix))
        XP_TRY(add_step(t, place, (xp_split_step){0}));
    return json_is_false(use_regex) ? XP_OK : add_regex(t, place, gpt2_pattern);
}

static xp_status read_pre_tokenizer(xp_tokenizer *t, const json_t *step, const char *place,
                                    int depth, bool *byte_level) {
    const char *type = xp_json_text(step, "type");
    if (*byte_level)
        return xp_tokenizer_refuse(XP_ENOTSUP, place, "a step after ByteLevel");
    if (!strcmp(type, "Split"))
        return read_split(t, step, place);
    if (!strcmp(type, "Digits"))
        return add_regex(t, place,
                         json_is_true(json_object_get(step, "individual_digits")) ? "\\p{N}"
                                                                                  : "\\p{N}+");
    if (!strcmp(type, "ByteLevel")) {
        *byte_level = true;
        return read_byte_level(t, step, place);
    }
    if (!strcmp(type, "Sequence") && depth < MAX_NESTING) {
        const json_t *steps = json_object_get(step, "pretokenizers");
        if (!json_is_array(steps))
            return xp_tokenizer_refuse(XP_EFORMAT, place, "\"pretokenizers\" is not an array");
        for (size_t i = 0; i < json_array_size(steps); i++) {
            char inner[PLACE_BYTES];
            snprintf(inner, sizeof(inner), "%.100s.pretokenizers[%zu]", place, i);
            XP_TRY(read_pre_tokenizer(t, json_array_get(steps, i), inner, depth + 1, byte_level));
        }
        return XP_OK;
    }
    return xp_error(
        *type ? XP_ENOTSUP : XP_EFORMAT,
        "%s.type: \"%.40s\" is not supported; Split, Digits, ByteLevel and Sequence are", place,
        type);
}

xp_status xp_tokenizer_read_steps(xp_tokenizer *t, const json_t *root) {
    XP_TRY(read_normalizer(t, json_object_get(root, "normalizer"), "normalizer", 0));
    const json_t *pre_tokenizer = json_object_get(root, "pre_tokenizer");
    bool byte_level = false;
    if (xp_json_is_set(pre_tokenizer))
        XP_TRY(read_pre_tokenizer(t, pre_tokenizer, "pre_tokenizer", 0, &byte_level));
    if (!byte_level)
        return xp_tokenizer_refuse(XP_ENOTSUP, "pre_tokenizer",
                                   "no ByteLevel step; only byte-level BPE is supported");
    return XP_OK;
}

static xp_status push_id(int32_t **ids, int *n, int32_t id) {
    int32_t *grown = realloc(*ids, (size_t)(*n + 1) * sizeof(*grown));
    if (!grown)
        return xp_error(XP_ENOMEM, "no memory for the post-processor");
    grown[(*n)++] = id;
    *ids = grown;
    return XP_OK;
}

/* The ids that a special token of the template stands for. */
static xp_status push_special(xp_tokenizer *t, const json_t *specials, const char *name,
                              const char *place, bool before) {
    const json_t *ids = json_object_get(json_object_get(specials, name), "ids");
    if (!json_is_array(ids))
        return xp_error(XP_EFORMAT, "%s.special_tokens: no ids for \"%.60s\"", place, name);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        json_int_t id = json_integer_value(json_array_get(ids, i));
        if (!json_is_integer(json_array_get(ids, i)) || id < 0 || id >= t->n_tokens ||
            t->kinds[id] == XP_TOKEN_ABSENT)
            return xp_error(XP_EFORMAT,
                            "%s.special_tokens[\"%.60s\"].ids[%zu]: no token has this id", place,
                            name, i);
        XP_TRY(before ? push_id(&t->prefix, &t->n_prefix, (int32_t)id)
                      : push_id(&t->suffix, &t->n_suffix, (int32_t)id));
    }
    return XP_OK;
}

static xp_status read_processor(xp_tokenizer *t, const json_t *step, const char *place, int depth) {
    const char *type = xp_json_text(step, "type");
    if (!strcmp(type, "ByteLevel"))
        return XP_OK; /* changes offsets only */
    if (!strcmp(type, "Sequence") && depth < MAX_NESTING) {
        const json_t *steps = json_object_get(step, "processors");
        if (!json_is_array(steps))
            return xp_tokenizer_refuse(XP_EFORMAT, place, "\"processors\" is not an array");
        for (size_t i = 0; i < json_array_size(steps); i++) {
            char inner[PLACE_BYTES];
            snprintf(inner, sizeof(inner), "%.100s.processors[%zu]", place, i);
            XP_TRY(read_processor(t, json_array_get(steps, i), inner, depth + 1));
        }
        return XP_OK;
    }
    if (strcmp(type, "TemplateProcessing") != 0)
        return xp_error(*type ? XP_ENOTSUP : XP_EFORMAT,
                        "%s.type: \"%.40s\" is not supported; ByteLevel and TemplateProcessing are",
                        place, type);
    const json_t *single = json_object_get(step, "single");
    if (!json_is_array(single) || t->n_prefix + t->n_suffix > 0)
        return xp_tokenizer_refuse(XP_EFORMAT, place,
                                   "\"single\" is not an array, or a second template");
    bool before = true;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *part = json_array_get(single, i);
        const json_t *special = json_object_get(part, "SpecialToken");
        if (special)
            XP_TRY(push_special(t, json_object_get(step, "special_tokens"),
                                xp_json_text(special, "id"), place, before));
        else if (json_object_get(part, "Sequence") && before)
            before = false;
        else
            return xp_error(XP_EFORMAT, "%s.single[%zu]: not a special token or the one sequence",
                            place, i);
    }
    return before ? xp_tokenizer_refuse(XP_EFORMAT, place, "\"single\" has no sequence") : XP_OK;
}

xp_status xp_tokenizer_read_template(xp_tokenizer *t, const json_t *root) {
    const json_t *processor = json_object_get(root, "post_processor");
    return xp_json_is_set(processor) ? read_processor(t, processor, "post_processor", 0) : XP_OK;
}
