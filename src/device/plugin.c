#include "device/plugin.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LIBRARY "libexpar_cuda.so"

/* Cut the file name off; false when the path has no folder. */
static bool keep_folder(char *path) {
    char *slash = strrchr(path, '/');
    if (slash == NULL)
        return false;
    *slash = '\0';
    return true;
}

void *xp_plugin_open(const char *file_name, char *why, size_t n_why) {
    char here[4096] = "", exe[4096] = "";
    Dl_info info;
    if (dladdr((void *)(uintptr_t)&xp_plugin_open, &info) != 0 && info.dli_fname != NULL)
        snprintf(here, sizeof here, "%s", info.dli_fname);
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    exe[n > 0 ? n : 0] = '\0';
    const char *folders[2] = {keep_folder(here) ? here : NULL, keep_folder(exe) ? exe : NULL};
    static const char *const below[] = {"", "/../lib"};
    for (int i = 0; i < 2; i++)
        for (int k = 0; folders[i] != NULL && k < 2; k++) {
            char path[4200];
            snprintf(path, sizeof path, "%s%s/%s", folders[i], below[k], file_name);
            if (access(path, R_OK) != 0)
                continue;
            void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (library == NULL)
                snprintf(why, n_why, "%s", dlerror());
            return library;
        }
    void *library = dlopen(file_name, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        snprintf(why, n_why, "%s", dlerror());
    return library;
}

/* The one load of a process; constant afterwards. */
static pthread_once_t load_once = PTHREAD_ONCE_INIT;
static const xp_cuda_backend *loaded;
static char reason[512];

static void load(void) {
    void *library = xp_plugin_open(LIBRARY, reason, sizeof reason);
    if (library == NULL)
        return;
    xp_cuda_entry entry = (xp_cuda_entry)(uintptr_t)dlsym(library, XP_CUDA_ENTRY);
    const xp_cuda_backend *backend = entry == NULL ? NULL : entry();
    if (backend == NULL || backend->abi_version != XP_CUDA_ABI_VERSION) {
        snprintf(reason, sizeof reason, "%s belongs to another version of expar; build again",
                 LIBRARY);
        return;
    }
    int n_devices = 0;
    if (backend->device_count(&n_devices) != XP_OK) {
        snprintf(reason, sizeof reason, "%s", xp_last_error());
        return;
    }
    loaded = backend;
}

xp_status xp_cuda_backend_get(const xp_cuda_backend **backend) {
    pthread_once(&load_once, load);
    if (loaded == NULL)
        return xp_error(XP_ENOTSUP, "no CUDA backend: %s", reason);
    *backend = loaded;
    return XP_OK;
}
