/** Relative paths of a file: from the folder the command runs in, else from the file's own folder. */
#include "config/set.h"

#include <errno.h>
#include <glob.h>
#include <string.h>
#include <unistd.h>

/* A file, a folder, or what a glob finds. */
static bool is_there(const char *path) {
    if (access(path, F_OK) == 0 || (errno != ENOENT && errno != ENOTDIR))
        return true; /* what may not be looked at is there */
    if (!strpbrk(path, "*?["))
        return false;
    glob_t found;
    bool some = glob(path, GLOB_NOSORT, NULL, &found) == 0;
    if (some)
        globfree(&found);
    return some;
}

/* What lies beside the file `origin`, where nothing is at `path` itself. */
static xp_status resolve(xp_config_set *set, const xp_origin *origin, const char **path) {
    const char *slash = origin->kind == XP_ORIGIN_FILE ? strrchr(origin->name, '/') : NULL;
    if (!slash || !*path || (*path)[0] == '/' || is_there(*path))
        return XP_OK;
    const char *beside =
        xp_arena_printf(set->arena, "%.*s/%s", (int)(slash - origin->name), origin->name, *path);
    if (!beside)
        return xp_error(XP_ENOMEM, "out of memory for the configuration");
    if (is_there(beside))
        *path = beside;
    return XP_OK;
}

static xp_status resolve_field(xp_config_set *set, const xp_field *field) {
    const xp_origin *origin = xp_set_origin(set, field);
    void *at = (char *)&set->config + field->offset;
    if (field->type != XP_FIELD_SOURCES)
        return resolve(set, origin, at);
    xp_source_list *list = at;
    for (int i = 0; i < list->n; i++)
        XP_TRY(resolve(set, origin, &list->items[i].path));
    return XP_OK;
}

xp_status xp_set_resolve_paths(xp_config_set *set) {
    for (int i = 0; i < xp_field_count(); i++)
        if (xp_field_at(i)->is_input)
            XP_TRY(resolve_field(set, xp_field_at(i)));
    return XP_OK;
}
