#include "disk_rate.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include "core/file.h"

#define SECONDS     0.4
#define FIRST_BYTES ((size_t)1 << 20)
#define MOST_BYTES                                                                                 \
    ((size_t)32 << 20) /* of a piece: it grows while a piece takes less than QUICK_S */
#define QUICK_S    0.05
#define FILE_BYTES ((int64_t)1 << 30)

static xp_status failed(const char *folder) {
    return xp_error(XP_EIO, "cannot write to %s: %s", folder, strerror(errno));
}

static xp_status write_all(int fd, const char *data, size_t n, const char *folder) {
    while (n > 0) {
        const ssize_t written = write(fd, data, n);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return failed(folder);
        data += written;
        n -= (size_t)written;
    }
    return XP_OK;
}

static xp_status measure(int fd, const char *data, const char *folder, xp_disk_rate *rate) {
    const double began = xp_time_s();
    double now = began;
    size_t n = FIRST_BYTES;
    while (now - began < SECONDS && rate->n_bytes < FILE_BYTES) {
        const double before = now;
        XP_TRY(write_all(fd, data, n, folder));
        if (fdatasync(fd) != 0)
            return failed(folder);
        now = xp_time_s();
        rate->n_bytes += (int64_t)n;
        if (now - before < QUICK_S && n < MOST_BYTES)
            n *= 2;
    }
    rate->bytes_per_s = (double)rate->n_bytes / (now - began);
    return XP_OK;
}

xp_status xp_measure_disk(const char *folder, xp_disk_rate *rate) {
    char path[4096];
    struct statvfs s;
    *rate = (xp_disk_rate){0};
    if (statvfs(folder, &s) != 0)
        return failed(folder);
    rate->free_bytes = (double)s.f_bavail * (double)s.f_frsize;
    snprintf(path, sizeof path, "%s/.expar-doctor-XXXXXX", folder);
    const int fd = mkstemp(path);
    if (fd < 0)
        return failed(folder);
    unlink(path); /* nothing is left behind, whatever ends this process */
    char *data = malloc(MOST_BYTES);
    xp_status status = XP_ENOMEM;
    if (data) {
        for (size_t i = 0; i < MOST_BYTES; i++) /* no zeros, which some disks do not store */
            data[i] = (char)(i * 2654435761U >> 13);
        status = measure(fd, data, folder, rate);
    } else {
        status = xp_error(XP_ENOMEM, "no memory to measure the disk");
    }
    free(data);
    close(fd);
    return status;
}
