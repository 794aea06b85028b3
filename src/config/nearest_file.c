/** The file that a mistyped path may mean. */
#include "config/fields.h"

#include <stdlib.h>
#include <string.h>
#include "core/file.h"
#include "core/text.h"

#define SUFFIX ".toml"

enum { MAX_NAME = 256 };

typedef struct search {
    char wanted[MAX_NAME]; /* without a folder and the suffix */
    char found[MAX_NAME];  /* the nearest name so far, whole */
    int best;              /* only nearer ones count */
} search;

static size_t stem_length(const char *name) {
    const size_t n = strlen(name), n_suffix = strlen(SUFFIX);
    return n > n_suffix && strcmp(name + n - n_suffix, SUFFIX) == 0 ? n - n_suffix : n;
}

static void copy_stem(const char *name, char stem[MAX_NAME]) {
    const size_t n = stem_length(name);
    memcpy(stem, name, n);
    stem[n] = '\0';
}

/* Of equally near names the first in the alphabet: folders list theirs in any order. */
static xp_status look_at(void *context, const char *folder, const char *name) {
    search *s = context;
    char stem[MAX_NAME];
    (void)folder;
    const size_t n = strlen(name);
    if (n >= MAX_NAME || stem_length(name) == n)
        return XP_OK;
    copy_stem(name, stem);
    const int distance = xp_edit_distance(s->wanted, stem);
    if (distance < s->best || (distance == s->best && s->found[0] && strcmp(name, s->found) < 0)) {
        s->best = distance;
        memcpy(s->found, name, n + 1);
    }
    return XP_OK;
}

char *xp_config_file_nearest(const char *path) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    search s = {.found = ""};
    if (strlen(name) == 0 || strlen(name) >= MAX_NAME)
        return NULL;
    copy_stem(name, s.wanted);
    s.best = xp_name_tolerance(s.wanted) + 1;
    char *folder = slash ? strndup(path, (size_t)(slash - path) + (slash == path)) : strdup(".");
    /* in the folder that the path names; else in the one that is called so in every checkout */
    for (int i = 0; folder && i < 2 && !s.found[0]; i++)
        if (xp_folder_each(i == 0 ? folder : "configs", look_at, &s) != XP_OK)
            xp_error_clear();
        else if (s.found[0] && i == 1) {
            free(folder);
            folder = strdup("configs");
        }
    char *near = !folder || !s.found[0]               ? NULL
                 : !slash && strcmp(folder, ".") == 0 ? strdup(s.found)
                                                      : xp_path_join(folder, s.found);
    free(folder);
    return near;
}
