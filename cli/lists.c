#include "lists.h"

#include <stdio.h>
#include <string.h>
#include "core/text.h"

/* The next word of a comma-separated list into `word`, and *text behind it: NULL past the last.
 * "4," has an empty word behind its comma, and an empty list is one empty word. */
static bool next_word(const char **text, char word[64]) {
    if (!*text)
        return false;
    const size_t n = strcspn(*text, ",");
    snprintf(word, 64, "%.*s", (int)n, *text);
    *text = (*text)[n] ? *text + n + 1 : NULL;
    return true;
}

static bool refuse(const char *option, const char *word, const char *why) {
    fprintf(stderr, "error: %s: \"%s\": %s\n", option, word, why);
    return false;
}

bool cli_parse_ints(const char *option, const char *text, int64_t low, int64_t high,
                    cli_int_list *list) {
    char word[64];
    list->n = 0;
    while (next_word(&text, word)) {
        int64_t value;
        char why[96];
        snprintf(why, sizeof why, "wanted are whole numbers from %lld to %lld, as in 1,2,4",
                 (long long)low, (long long)high);
        if (!xp_parse_i64(word, &value) || value < low || value > high)
            return refuse(option, word, why);
        if (list->n == CLI_LIST_MAX)
            return refuse(option, word, "too many values");
        list->values[list->n++] = value;
    }
    return true;
}

static int index_of(const char *word, const char *const *names) {
    for (int i = 0; names[i]; i++)
        if (strcmp(word, names[i]) == 0)
            return i;
    return -1;
}

bool cli_parse_choices(const char *option, const char *text, const char *const *names, int max,
                       cli_choice_list *list) {
    char word[64];
    char why[256] = "it can be";
    size_t used = strlen(why);
    for (int i = 0; names[i] && used < sizeof why; i++)
        used +=
            (size_t)snprintf(why + used, sizeof why - used, "%s %s", i > 0 ? "," : "", names[i]);
    list->n = 0;
    while (next_word(&text, word)) {
        const int index = index_of(word, names);
        if (index < 0)
            return refuse(option, word, why);
        if (list->n == max || list->n == CLI_LIST_MAX)
            return refuse(option, word, "too many values");
        list->values[list->n++] = index;
    }
    return true;
}
