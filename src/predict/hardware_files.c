/* Installed hardware descriptions: share/expar/hardware beside the library or the program. */
#include "predict/hardware_files.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include "core/file.h"
#include "predict/hardware.h"

#define SUFFIX ".toml"

static bool keep_folder(char *path) {
    char *slash = strrchr(path, '/');
    if (slash)
        *slash = '\0';
    return slash != NULL;
}

/* Beside the library's own file or the program's; a library folder may be lib/TRIPLET. A build folder of which
 * only bin/ and lib/ were kept stands in the sources. */
static xp_status find_folder(char *folder, size_t n_folder) {
    char here[4096] = "", exe[4096] = "";
    Dl_info info;
    if (dladdr((void *)(uintptr_t)&xp_hardware_path, &info) != 0 && info.dli_fname)
        snprintf(here, sizeof here, "%s", info.dli_fname);
    const ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = '\0';
    const char *const start[2] = {keep_folder(here) ? here : NULL, keep_folder(exe) ? exe : NULL};
    static const char *const below[] = {"/../share/expar/hardware", "/../../share/expar/hardware",
                                        "/../../../configs/hardware"};
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < 2; i++) {
            bool there = false;
            if (!start[i])
                continue;
            snprintf(folder, n_folder, "%s%s", start[i], below[k]);
            if (xp_path_is_folder(folder, &there) == XP_OK && there)
                return XP_OK;
        }
    return xp_error(XP_ENOENT,
                    "no folder share/expar/hardware beside %s: install expar, or give a file", exe);
}

static xp_status add_name(void *context, const char *folder, const char *name) {
    xp_hardware_list *list = context;
    (void)folder;
    const size_t n = strlen(name), cut = strlen(SUFFIX);
    if (n <= cut || n - cut >= XP_HARDWARE_NAME || strcmp(name + n - cut, SUFFIX) != 0 ||
        list->n == XP_HARDWARE_MAX)
        return XP_OK;
    memcpy(list->names[list->n], name, n - cut);
    list->names[list->n++][n - cut] = '\0';
    return XP_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(a, b);
}

static xp_status list_names(char *folder, size_t n_folder, xp_hardware_list *list) {
    list->n = 0;
    XP_TRY(find_folder(folder, n_folder));
    XP_TRY(xp_folder_each(folder, add_name, list));
    qsort(list->names, (size_t)list->n, sizeof list->names[0], by_name);
    return XP_OK;
}

static bool is_path(const char *name) {
    const size_t n = strlen(name), cut = strlen(SUFFIX);
    return strchr(name, '/') || (n > cut && strcmp(name + n - cut, SUFFIX) == 0);
}

xp_status xp_hardware_path(const char *name, char *path, size_t n_path) {
    char folder[4096];
    xp_hardware_list list;
    if (is_path(name)) {
        snprintf(path, n_path, "%s", name);
        return XP_OK;
    }
    XP_TRY(list_names(folder, sizeof folder, &list));
    const char *nearest = "";
    int distance = 1000;
    for (int i = 0; i < list.n; i++) {
        if (strcasecmp(list.names[i], name) == 0) {
            snprintf(path, n_path, "%s/%s" SUFFIX, folder, list.names[i]);
            return XP_OK;
        }
        const int d = xp_edit_distance(name, list.names[i]);
        if (d < distance) {
            distance = d;
            nearest = list.names[i];
        }
    }
    return xp_error(XP_ENOENT,
                    "there is no hardware \"%s\"; did you mean \"%s\"? A file can be given, too",
                    name, nearest);
}

xp_status xp_hardware_list_installed(xp_hardware_list *list) {
    char folder[4096];
    return list_names(folder, sizeof folder, list);
}
