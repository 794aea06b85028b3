/*
 * Memory that processes of a node share: an unnamed file in memory, opened by the others through
 * /proc. Nothing is left behind however a process dies, and the size of /dev/shm, often 64 MB in a
 * container, does not matter.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "comm/shared_memory.h"

static xp_status map(size_t n_bytes, int fd, void **data) {
    void *at = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return xp_error(XP_ENOMEM, "cannot map %zu bytes of shared memory: %s", n_bytes,
                        strerror(errno));
    *data = at;
    return XP_OK;
}

xp_status xp_shared_create(size_t n_bytes, const char *what, int *fd, void **data) {
    int made = memfd_create(what, MFD_CLOEXEC);
    if (made < 0)
        return xp_error(XP_ENOMEM, "cannot make shared memory for %s: %s", what, strerror(errno));
    int code = 0;
    do
        code =
            ftruncate(made, (off_t)n_bytes) != 0 ? errno : posix_fallocate(made, 0, (off_t)n_bytes);
    while (code == EINTR);
    xp_status status =
        code == 0 ? map(n_bytes, made, data)
                  : xp_error(XP_ENOMEM, "cannot reserve %zu bytes of shared memory for %s: %s",
                             n_bytes, what, strerror(code));
    if (status != XP_OK) {
        close(made);
        return status;
    }
    *fd = made;
    return XP_OK;
}

xp_status xp_shared_open(size_t n_bytes, int pid, int fd, void **data) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
    int theirs = open(path, O_RDWR | O_CLOEXEC);
    if (theirs < 0)
        return xp_error(XP_ECOMM,
                        "cannot open the shared memory of process %d (%s): %s; all ranks of a node "
                        "must run as the same user",
                        pid, path, strerror(errno));
    xp_status status = map(n_bytes, theirs, data);
    close(theirs);
    return status;
}
