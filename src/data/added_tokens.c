#include "data/added_tokens.h"

#include <stdlib.h>
#include <string.h>
#include "core/text.h"
#include "data/charset.h"

/* A trie of bytes; node 0 is the root. 0 as a link means none. */
typedef struct node {
    int32_t child, sibling;
    int32_t token; /* index, -1: none ends here */
    unsigned char byte;
} node;

struct xp_added_tokens {
    node *nodes;
    int32_t n_nodes, node_capacity;
    xp_added_token *tokens;
    int32_t n_tokens, token_capacity;
    bool starts[256]; /* bytes that a token starts with */
};

static xp_status new_node(xp_added_tokens *set, unsigned char byte, int32_t *index) {
    if (set->n_nodes == set->node_capacity) {
        int32_t capacity = set->node_capacity ? 2 * set->node_capacity : 256;
        node *grown = realloc(set->nodes, (size_t)capacity * sizeof(*grown));
        if (!grown)
            return xp_error(XP_ENOMEM, "no memory for added tokens");
        set->nodes = grown;
        set->node_capacity = capacity;
    }
    set->nodes[set->n_nodes] = (node){.token = -1, .byte = byte};
    *index = set->n_nodes++;
    return XP_OK;
}

xp_status xp_added_tokens_create(xp_added_tokens **set) {
    xp_added_tokens *made = calloc(1, sizeof(*made));
    if (!made)
        return xp_error(XP_ENOMEM, "no memory for added tokens");
    int32_t root;
    xp_status status = new_node(made, 0, &root);
    if (status != XP_OK) {
        xp_added_tokens_destroy(made);
        return status;
    }
    *set = made;
    return XP_OK;
}

void xp_added_tokens_destroy(xp_added_tokens *set) {
    if (!set)
        return;
    free(set->nodes);
    free(set->tokens);
    free(set);
}

static int32_t find_child(const xp_added_tokens *set, int32_t at, unsigned char byte) {
    int32_t child = set->nodes[at].child;
    while (child && set->nodes[child].byte != byte)
        child = set->nodes[child].sibling;
    return child;
}

xp_status xp_added_tokens_add(xp_added_tokens *set, const char *content, size_t n,
                              const xp_added_token *token) {
    int32_t at = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t child = find_child(set, at, (unsigned char)content[i]);
        if (!child) {
            XP_TRY(new_node(set, (unsigned char)content[i], &child));
            set->nodes[child].sibling = set->nodes[at].child;
            set->nodes[at].child = child;
        }
        at = child;
    }
    if (set->n_tokens == set->token_capacity) {
        int32_t capacity = set->token_capacity ? 2 * set->token_capacity : 32;
        xp_added_token *grown = realloc(set->tokens, (size_t)capacity * sizeof(*grown));
        if (!grown)
            return xp_error(XP_ENOMEM, "no memory for added tokens");
        set->tokens = grown;
        set->token_capacity = capacity;
    }
    set->tokens[set->n_tokens] = *token;
    set->nodes[at].token = set->n_tokens++;
    set->starts[(unsigned char)content[0]] = true;
    return XP_OK;
}

/* The longest token that starts at text[at]. @return its bytes, 0: none */
static size_t longest_at(const xp_added_tokens *set, const char *text, size_t n, size_t at,
                         const xp_added_token **token) {
    size_t length = 0;
    int32_t place = 0;
    for (size_t i = at; i < n; i++) {
        place = find_child(set, place, (unsigned char)text[i]);
        if (!place)
            break;
        if (set->nodes[place].token >= 0) {
            *token = &set->tokens[set->nodes[place].token];
            length = i + 1 - at;
        }
    }
    return length;
}

/* Start of the code point that ends before `at` > 0. */
static size_t step_back(const char *text, size_t at) {
    for (at--; at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80;)
        at--;
    return at;
}

static bool stands_alone(const char *text, size_t n, size_t from, size_t to) {
    uint32_t c = 0;
    if (from > 0) {
        size_t before = step_back(text, from);
        xp_utf8_decode(text + before, from - before, &c);
        if (xp_unicode_is_word(c))
            return false;
    }
    return to == n || !xp_utf8_decode(text + to, n - to, &c) || !xp_unicode_is_word(c);
}

static size_t strip_left(const char *text, size_t from, size_t limit) {
    while (from > limit) {
        uint32_t c = 0;
        size_t before = step_back(text, from);
        xp_utf8_decode(text + before, from - before, &c);
        if (!xp_unicode_is_space(c))
            break;
        from = before;
    }
    return from;
}

static size_t strip_right(const char *text, size_t n, size_t to) {
    while (to < n) {
        uint32_t c = 0;
        int used = xp_utf8_decode(text + to, n - to, &c);
        if (!xp_unicode_is_space(c))
            break;
        to += (size_t)used;
    }
    return to;
}

xp_status xp_added_tokens_split(const xp_added_tokens *set, const char *text, size_t n,
                                xp_added_tokens_fn fn, void *context) {
    size_t done = 0; /* everything before it has been handed out */
    for (size_t at = 0; at < n;) {
        const xp_added_token *token = NULL;
        size_t length =
            set->starts[(unsigned char)text[at]] ? longest_at(set, text, n, at, &token) : 0;
        if (length == 0) {
            at++;
            continue;
        }
        size_t from = at, to = at + length;
        at = to;
        if (token->single_word && !stands_alone(text, n, from, to))
            continue;
        if (token->lstrip)
            from = strip_left(text, from, done);
        if (token->rstrip)
            to = strip_right(text, n, to);
        if (done < from)
            XP_TRY(fn(context, NULL, text + done, from - done));
        XP_TRY(fn(context, token, text + from, to - from));
        done = to;
        if (at < done)
            at = done;
    }
    return done < n ? fn(context, NULL, text + done, n - done) : XP_OK;
}
