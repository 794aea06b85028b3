#include "checkpoint/outfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include "core/file.h"

#define BUFFER_BYTES (1 << 20)
/* write(2) moves at most 2^31 bytes a call; smaller pieces also keep an interrupted write short. */
#define MAX_WRITE (1 << 26)

struct xp_outfile {
    char *path, *tmp_path;
    unsigned char *buffer;
    size_t n_buffered;
    int64_t n_bytes;
    XXH64_state_t *hash;
    xp_status status; /* the first failure, kept */
    int fd;
    bool committed;
};

static xp_status write_failed(xp_outfile *out, int error, const char *what) {
    char text[128];
    const char *hint = "";
    if (error == ENOSPC || error == EDQUOT || error == EFBIG)
        hint = "; free some space there or choose another folder";
    out->status = xp_error(XP_EIO, "cannot %s %s: %s%s", what, out->path,
                           strerror_r(error, text, sizeof text), hint);
    return out->status;
}

xp_status xp_outfile_open(const char *path, xp_outfile **out) {
    xp_outfile *file = calloc(1, sizeof *file);
    if (file == NULL)
        return xp_error(XP_ENOMEM, "no memory to write %s", path);
    file->fd = -1;
    file->hash = XXH64_createState();
    file->path = strdup(path);
    file->buffer = malloc(BUFFER_BYTES);
    if (asprintf(&file->tmp_path, "%s.tmp", path) < 0)
        file->tmp_path = NULL;
    if (file->path == NULL || file->buffer == NULL || file->tmp_path == NULL ||
        file->hash == NULL) {
        xp_outfile_close(file);
        return xp_error(XP_ENOMEM, "no memory to write %s", path);
    }
    XXH64_reset(file->hash, 0);
    file->fd = open(file->tmp_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file->fd < 0) {
        xp_status status = write_failed(file, errno, "create");
        xp_outfile_close(file);
        return status;
    }
    *out = file;
    return XP_OK;
}

xp_status xp_outfile_reserve(xp_outfile *out, int64_t n_bytes) {
    if (out->status != XP_OK || n_bytes == 0)
        return out->status;
    while (fallocate(out->fd, 0, 0, n_bytes) != 0) {
        if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)
            return write_failed(out, errno, "reserve the space of");
        if (errno != EINTR)
            break; /* this file system cannot reserve: the writes will tell */
    }
    return XP_OK;
}

static xp_status write_through(xp_outfile *out, const unsigned char *data, size_t n_bytes) {
    while (n_bytes > 0) {
        ssize_t n = write(out->fd, data, n_bytes < MAX_WRITE ? n_bytes : MAX_WRITE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return write_failed(out, errno, "write");
        if (n == 0)
            return write_failed(out, ENOSPC, "write");
        data += n;
        n_bytes -= (size_t)n;
    }
    return XP_OK;
}

static xp_status flush(xp_outfile *out) {
    XP_TRY(write_through(out, out->buffer, out->n_buffered));
    out->n_buffered = 0;
    return XP_OK;
}

xp_status xp_outfile_write(xp_outfile *out, const void *data, size_t n_bytes) {
    if (out->status != XP_OK || n_bytes == 0)
        return out->status;
    XXH64_update(out->hash, data, n_bytes);
    out->n_bytes += (int64_t)n_bytes;
    if (n_bytes > BUFFER_BYTES - out->n_buffered)
        XP_TRY(flush(out));
    if (n_bytes >= BUFFER_BYTES)
        return write_through(out, data, n_bytes);
    memcpy(out->buffer + out->n_buffered, data, n_bytes);
    out->n_buffered += n_bytes;
    return XP_OK;
}

xp_status xp_outfile_commit(xp_outfile *out) {
    if (out->status != XP_OK)
        return out->status;
    XP_TRY(flush(out));
    /* A reservation larger than what was written must not leave zeros behind. */
    if (ftruncate(out->fd, out->n_bytes) != 0 || fsync(out->fd) != 0)
        return write_failed(out, errno, "write");
    int fd = out->fd;
    out->fd = -1;
    if (close(fd) != 0)
        return write_failed(out, errno, "write");
    if (rename(out->tmp_path, out->path) != 0)
        return write_failed(out, errno, "rename a finished file to");
    out->committed = true;
    char *slash = strrchr(out->path, '/');
    if (slash == NULL)
        return out->status = xp_file_sync_folder(".");
    *slash = '\0';
    out->status = xp_file_sync_folder(slash == out->path ? "/" : out->path);
    *slash = '/';
    return out->status;
}

int64_t xp_outfile_n_bytes(const xp_outfile *out) {
    return out->n_bytes;
}

uint64_t xp_outfile_xxh64(const xp_outfile *out) {
    return XXH64_digest(out->hash);
}

void xp_outfile_close(xp_outfile *out) {
    if (out == NULL)
        return;
    if (out->fd >= 0)
        close(out->fd);
    if (!out->committed && out->tmp_path != NULL)
        unlink(out->tmp_path);
    XXH64_freeState(out->hash);
    free(out->path);
    free(out->tmp_path);
    free(out->buffer);
    free(out);
}
