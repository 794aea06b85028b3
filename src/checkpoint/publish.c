#include "checkpoint/publish.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/file.h"
#include "core/text.h"

static xp_status sync_parent(const char *path) {
    char *parent = strdup(path);
    if (parent == NULL)
        return xp_error(XP_ENOMEM, "no memory to publish %s", path);
    char *slash = strrchr(parent, '/');
    if (slash == parent)
        slash[1] = '\0';
    else if (slash != NULL)
        *slash = '\0';
    xp_status status = xp_file_sync_folder(slash == NULL ? "." : parent);
    free(parent);
    return status;
}

static xp_status rename_failed(const char *from, const char *to) {
    char text[128];
    return xp_error(XP_EIO, "cannot rename %s to %s: %s", from, to,
                    strerror_r(errno, text, sizeof text));
}

xp_status xp_folder_publish(const char *temp, const char *target, const char *aside) {
    XP_TRY(xp_file_sync_folder(temp));
    if (rename(temp, target) == 0)
        return sync_parent(target);
    if (errno != EEXIST && errno != ENOTEMPTY)
        return rename_failed(temp, target);
    /* After the exchange the temporary name holds the replaced folder: a crash here leaves a whole
     * target and rubbish. */
    if (renameat2(AT_FDCWD, temp, AT_FDCWD, target, RENAME_EXCHANGE) == 0) {
        XP_TRY(sync_parent(target));
        return xp_folder_remove(temp);
    }
    if (errno != EINVAL && errno != ENOSYS)
        return rename_failed(temp, target);
    XP_TRY(xp_folder_remove(aside));
    if (rename(target, aside) != 0)
        return rename_failed(target, aside);
    if (rename(temp, target) != 0)
        return rename_failed(temp, target);
    XP_TRY(sync_parent(target));
    return xp_folder_remove(aside);
}

xp_status xp_folder_discard(const char *temp, xp_status cause) {
    char text[1024];
    const int rank = xp_last_error_rank();
    snprintf(text, sizeof text, "%s", xp_last_error());
    if (xp_folder_remove(temp) == XP_OK)
        xp_error(cause, "%s", text);
    else
        xp_error(cause, "%s (and %s stays behind)", text, temp);
    xp_error_set_rank(rank);
    return cause;
}

xp_status xp_step_paths_create(const char *folder, int64_t step, xp_step_paths *paths) {
    *paths = (xp_step_paths){0};
    if (asprintf(&paths->final, "%s/step-%lld", folder, (long long)step) < 0)
        paths->final = NULL;
    if (asprintf(&paths->temp, "%s/.step-%lld.tmp", folder, (long long)step) < 0)
        paths->temp = NULL;
    if (asprintf(&paths->aside, "%s/.step-%lld.old", folder, (long long)step) < 0)
        paths->aside = NULL;
    if (paths->final != NULL && paths->temp != NULL && paths->aside != NULL)
        return XP_OK;
    xp_step_paths_free(paths);
    return xp_error(XP_ENOMEM, "no memory for the names of a checkpoint");
}

void xp_step_paths_free(xp_step_paths *paths) {
    free(paths->final);
    free(paths->temp);
    free(paths->aside);
    *paths = (xp_step_paths){0};
}

/** The N of "<prefix>N<suffix>", written the one way that this program writes it; -1 for any other
 * name. */
static int64_t parse_step(const char *name, const char *prefix, const char *suffix) {
    size_t n_prefix = strlen(prefix), n_suffix = strlen(suffix), n = strlen(name);
    if (n <= n_prefix + n_suffix || strncmp(name, prefix, n_prefix) != 0 ||
        strcmp(name + n - n_suffix, suffix) != 0)
        return -1;
    char digits[24];
    size_t n_digits = n - n_prefix - n_suffix;
    if (n_digits >= sizeof digits)
        return -1;
    memcpy(digits, name + n_prefix, n_digits);
    digits[n_digits] = '\0';
    int64_t step;
    if (strspn(digits, "0123456789") != n_digits || (digits[0] == '0' && n_digits > 1) ||
        !xp_parse_i64(digits, &step))
        return -1;
    return step;
}

static xp_status has_manifest(const char *folder, const char *name, bool *found) {
    char *path;
    if (asprintf(&path, "%s/%s/%s", folder, name, XP_CKPT_MANIFEST) < 0)
        return xp_error(XP_ENOMEM, "no memory to list checkpoints");
    xp_status status = xp_path_exists(path, found);
    free(path);
    return status;
}

static int compare_steps(const void *a, const void *b) {
    const int64_t *left = a, *right = b;
    return (*left > *right) - (*left < *right);
}

typedef struct step_list {
    int64_t *steps, n;
} step_list;

static xp_status append_step(step_list *list, int64_t step) {
    int64_t *grown = realloc(list->steps, (size_t)(list->n + 1) * sizeof *grown);
    if (grown == NULL)
        return xp_error(XP_ENOMEM, "no memory to list checkpoints");
    grown[list->n++] = step;
    list->steps = grown;
    return XP_OK;
}

static xp_status list_entry(void *context, const char *folder, const char *name) {
    bool complete = false;
    int64_t step = parse_step(name, "step-", "");
    if (step < 0)
        step = parse_step(name, ".step-", ".old");
    if (step < 0)
        return XP_OK;
    XP_TRY(has_manifest(folder, name, &complete));
    return complete ? append_step(context, step) : XP_OK;
}

xp_status xp_steps_list(const char *folder, int64_t **steps, int64_t *n) {
    step_list found = {0};
    *steps = NULL;
    *n = 0;
    xp_status status = xp_folder_each(folder, list_entry, &found);
    bool exists = true;
    if (status == XP_ENOENT) /* none yet; a link that leads nowhere is an error */
        status = xp_path_exists(folder, &exists);
    if (status != XP_OK) {
        free(found.steps);
        return xp_error_context(status, "the checkpoints in %s", folder);
    }
    if (found.n > 0)
        qsort(found.steps, (size_t)found.n, sizeof *found.steps, compare_steps);
    int64_t n_unique = 0;
    for (int64_t i = 0; i < found.n; i++) {
        if (i == 0 || found.steps[i] != found.steps[n_unique - 1])
            found.steps[n_unique++] = found.steps[i];
    }
    *steps = found.steps;
    *n = n_unique;
    return XP_OK;
}

static xp_status clean_entry(void *context, const char *folder, const char *name) {
    (void)context;
    int64_t temp_step = parse_step(name, ".step-", ".tmp");
    int64_t aside_step = parse_step(name, ".step-", ".old");
    if (temp_step < 0 && aside_step < 0)
        return XP_OK;
    xp_step_paths paths;
    XP_TRY(xp_step_paths_create(folder, temp_step >= 0 ? temp_step : aside_step, &paths));
    bool exists = false;
    xp_status status = xp_path_exists(paths.final, &exists);
    if (status == XP_OK && temp_step >= 0)
        status = xp_folder_remove(paths.temp);
    else if (status == XP_OK && !exists)
        status = rename(paths.aside, paths.final) == 0 ? sync_parent(paths.final)
                                                       : rename_failed(paths.aside, paths.final);
    else if (status == XP_OK)
        status = xp_folder_remove(paths.aside);
    xp_step_paths_free(&paths);
    return status;
}

xp_status xp_steps_clean(const char *folder) {
    return xp_folder_each(folder, clean_entry, NULL);
}

/* ---- later steps after a return to an earlier one ----------------------------------------- */

static xp_status make_aside_folder(const char *folder, char **path) {
    for (int i = 1;; i++) {
        bool exists = false;
        if (asprintf(path, "%s/set-aside-%d", folder, i) < 0) {
            *path = NULL;
            return xp_error(XP_ENOMEM, "no memory for the name of a folder");
        }
        xp_status status = xp_path_exists(*path, &exists);
        if (status == XP_OK && !exists)
            return xp_folder_create(*path);
        free(*path);
        *path = NULL;
        XP_TRY(status);
    }
}

static xp_status move_aside(const char *folder, int64_t step, const char *into) {
    char *from = NULL, *to = NULL;
    if (asprintf(&from, "%s/step-%lld", folder, (long long)step) < 0)
        from = NULL;
    if (asprintf(&to, "%s/step-%lld", into, (long long)step) < 0)
        to = NULL;
    xp_status status = from != NULL && to != NULL
                           ? XP_OK
                           : xp_error(XP_ENOMEM, "no memory for the names of a checkpoint");
    if (status == XP_OK && rename(from, to) != 0)
        status = rename_failed(from, to);
    free(from);
    free(to);
    return status;
}

static xp_status move_later(const char *folder, const int64_t *steps, int64_t n, int64_t after,
                            int64_t except, char **into) {
    for (int64_t i = n - 1; i >= 0 && steps[i] > after; i--) {
        if (steps[i] == except)
            continue;
        if (*into == NULL) {
            /* What a crashed save left under another name gets its own back first. */
            XP_TRY(xp_steps_clean(folder));
            XP_TRY(make_aside_folder(folder, into));
        }
        XP_TRY(move_aside(folder, steps[i], *into));
    }
    if (*into == NULL)
        return XP_OK;
    XP_TRY(xp_file_sync_folder(*into));
    return xp_file_sync_folder(folder);
}

xp_status xp_steps_set_aside(const char *folder, int64_t after, int64_t except, char **into) {
    int64_t *steps, n;
    *into = NULL;
    XP_TRY(xp_steps_list(folder, &steps, &n));
    xp_status status = move_later(folder, steps, n, after, except, into);
    free(steps);
    return status;
}

static xp_status remove_step(const char *folder, int64_t step) {
    xp_step_paths paths;
    XP_TRY(xp_step_paths_create(folder, step, &paths));
    /* Under its temporary name first: a crash half way must not leave a step-N with a manifest and
     * without shards. */
    xp_status status = xp_folder_remove(paths.temp);
    if (status == XP_OK && rename(paths.final, paths.temp) != 0)
        status = rename_failed(paths.final, paths.temp);
    if (status == XP_OK)
        status = xp_folder_remove(paths.temp);
    xp_step_paths_free(&paths);
    return status;
}

xp_status xp_steps_prune(const char *folder, int64_t keep, int64_t newest_saved) {
    if (keep <= 0)
        return XP_OK;
    int64_t *steps, n;
    XP_TRY(xp_steps_list(folder, &steps, &n));
    xp_status status = XP_OK;
    int64_t n_left = n;
    for (int64_t i = 0; i < n && n_left > keep && status == XP_OK; i++) {
        if (steps[i] == newest_saved)
            continue;
        status = remove_step(folder, steps[i]);
        n_left--;
    }
    free(steps);
    return status;
}
