#include "ops/cuda/libraries.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct library_facts {
    const char *name;
    const char *files[2]; /* tried in this order */
    const char *version_symbol;
    const char *without; /* what goes without it */
} library_facts;

static const library_facts facts[XP_CUDA_N_LIBRARIES] = {
    [XP_CUBLASLT] = {"cuBLASLt",
                     {"libcublasLt.so.13", "libcublasLt.so.12"},
                     "cublasLtGetVersion",
                     "dense GEMMs cannot run on the GPU"},
    [XP_CUDNN] = {"cuDNN",
                  {"libcudnn.so.9", NULL},
                  "cudnnGetVersion",
                  "attention runs on the plain kernel, several times slower"},
};

/* Opened once a process, constant afterwards. */
static pthread_once_t open_once = PTHREAD_ONCE_INIT;
static void *handles[XP_CUDA_N_LIBRARIES];
static char reasons[XP_CUDA_N_LIBRARIES][512];

static void open_all(void) {
    for (int i = 0; i < XP_CUDA_N_LIBRARIES; i++) {
        char first[256] = "";
        for (int k = 0; k < 2 && handles[i] == NULL && facts[i].files[k] != NULL; k++) {
            handles[i] = dlopen(facts[i].files[k], RTLD_NOW | RTLD_LOCAL);
            if (handles[i] == NULL && k == 0)
                snprintf(first, sizeof first, "%s", dlerror());
        }
        if (handles[i] == NULL)
            snprintf(reasons[i], sizeof reasons[i],
                     "%s: %s; install it or put its folder on LD_LIBRARY_PATH (without it %s)",
                     facts[i].name, first, facts[i].without);
    }
}

void *xp_cuda_library_open(xp_cuda_library library, const char **why) {
    pthread_once(&open_once, open_all);
    *why = reasons[library];
    return handles[library];
}

bool xp_cuda_library_describe(int index, bool *usable, char *text, size_t n_bytes) {
    if (index < 0 || index >= XP_CUDA_N_LIBRARIES)
        return false;
    const char *why;
    void *handle = xp_cuda_library_open((xp_cuda_library)index, &why);
    *usable = handle != NULL;
    if (handle == NULL) {
        snprintf(text, n_bytes, "%s", why);
        return true;
    }
    size_t (*version)(void) =
        (size_t(*)(void))(uintptr_t)dlsym(handle, facts[index].version_symbol);
    const size_t v = version == NULL ? 0 : version();
    /* Both count alike: 130100 is 13.1.0, 91400 is 9.14.0. */
    const size_t major = v / 10000, minor = v / 100 % 100, patch = v % 100;
    snprintf(text, n_bytes, "%s %zu.%zu.%zu", facts[index].name, major, minor, patch);
    return true;
}

typedef struct libraries {
    xp_cuda_library_state slots[XP_CUDA_N_LIBRARIES];
} libraries;

static void destroy(void *data) {
    libraries *all = data;
    for (int i = 0; i < XP_CUDA_N_LIBRARIES; i++)
        if (all->slots[i].destroy != NULL)
            all->slots[i].destroy(all->slots[i].state);
    free(all);
}

xp_cuda_library_state *xp_cuda_library_slot(xp_cuda_device *device, xp_cuda_library library) {
    if (device->libraries == NULL) {
        device->libraries = calloc(1, sizeof(libraries));
        device->libraries_destroy = destroy;
    }
    if (device->libraries == NULL) {
        xp_error(XP_ENOMEM, "%s: out of memory", device->base.name);
        return NULL;
    }
    return &((libraries *)device->libraries)->slots[library];
}
