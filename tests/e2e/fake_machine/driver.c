/*
 * What `expar doctor` asks the NVIDIA driver and the system, with answers from the environment: libcuda ($FAKE_CUDA_VERSION,
 * $FAKE_CUDA_GPUS), NVML ($FAKE_NVLINKS a GPU), and the size of /dev/shm ($FAKE_SHM_MIB). The test links it under the libraries'
 * names and preloads it.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#define PUBLIC __attribute__((visibility("default")))

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

PUBLIC int cuInit(unsigned flags);
PUBLIC int cuDriverGetVersion(int *version);
PUBLIC int cuDeviceGetCount(int *n);
PUBLIC int nvmlInit_v2(void);
PUBLIC int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device);
PUBLIC int nvmlDeviceGetNvLinkState(void *device, unsigned link, int *active);

int cuInit(unsigned flags) {
    return (int)flags;
}

int cuDriverGetVersion(int *version) {
    *version = number("FAKE_CUDA_VERSION", 13000);
    return 0;
}

int cuDeviceGetCount(int *n) {
    *n = number("FAKE_CUDA_GPUS", 1);
    return 0;
}

int nvmlInit_v2(void) {
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(uintptr_t)(index + 1);
    return 0;
}

int nvmlDeviceGetNvLinkState(void *device, unsigned link, int *active) {
    *active = device != NULL && (int)link < number("FAKE_NVLINKS", 0);
    return 0;
}

PUBLIC int statvfs(const char *path, struct statvfs *s) {
    int (*next)(const char *, struct statvfs *) =
        (int (*)(const char *, struct statvfs *))(uintptr_t)dlsym(RTLD_NEXT, "statvfs");
    const int mib = number("FAKE_SHM_MIB", -1);
    if (!next || (mib == 0 && strcmp(path, "/dev/shm") == 0)) {
        errno = ENOENT;
        return -1;
    }
    const int result = next(path, s);
    if (result == 0 && mib > 0 && strcmp(path, "/dev/shm") == 0) {
        s->f_frsize = 4096;
        s->f_blocks = s->f_bavail = (fsblkcnt_t)mib * 256;
    }
    return result;
}
