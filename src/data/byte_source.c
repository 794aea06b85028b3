#include "data/byte_source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "data/data_files.h"

#define IN_BYTES   ((size_t)1 << 18)
#define GZIP_WRAP  (15 + 16) /* zlib's largest window, with gzip headers */
#define ZSTD_LOG   31        /* zstd --long=31 and everything below it */
#define MAGIC_SIZE 4

struct xp_byte_source {
    const char *path, *name;
    int fd;
    unsigned char *in; /* [IN_BYTES], of it [start, end) is not used yet */
    size_t start, end;
    bool at_end;
    int64_t n_read;
    xp_status (*read)(xp_byte_source *s, char *out, size_t room, size_t *n);
    bool inside; /* a gzip member or a Zstandard frame is open */
    z_stream z;
    bool has_z;
    ZSTD_DStream *zstd;
};

static xp_status damaged(const xp_byte_source *s, const char *what) {
    return xp_error(XP_EFORMAT, "cannot read %s: %s (in the packed data before byte %lld)", s->name,
                    what, (long long)(s->n_read - (int64_t)(s->end - s->start)));
}

/* More bytes behind those that are left; at_end when there are none. */
static xp_status fill(xp_byte_source *s) {
    if (s->start > 0) {
        memmove(s->in, s->in + s->start, s->end - s->start);
        s->end -= s->start;
        s->start = 0;
    }
    while (!s->at_end && s->end < IN_BYTES) {
        ssize_t n = read(s->fd, s->in + s->end, IN_BYTES - s->end);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return xp_error(XP_EIO, "cannot read %s: %s", s->name, strerror(errno));
        s->at_end = n == 0;
        s->end += (size_t)n;
        s->n_read += n;
    }
    return XP_OK;
}

static xp_status read_plain(xp_byte_source *s, char *out, size_t room, size_t *n) {
    if (s->start == s->end)
        XP_TRY(fill(s));
    *n = s->end - s->start < room ? s->end - s->start : room;
    memcpy(out, s->in + s->start, *n);
    s->start += *n;
    return XP_OK;
}

/* Between members: the next one starts, or the file ends (zeros may fill up a tape's block). */
static xp_status next_member(xp_byte_source *s, bool *more) {
    if (s->end - s->start < 2)
        XP_TRY(fill(s));
    if (s->end - s->start >= 2 && s->in[s->start] == 0x1f && s->in[s->start + 1] == 0x8b) {
        *more = true;
        s->inside = true;
        return inflateReset(&s->z) == Z_OK ? XP_OK : damaged(s, "zlib cannot start again");
    }
    for (*more = false; s->start < s->end;) {
        for (; s->start < s->end; s->start++)
            if (s->in[s->start] != 0)
                return damaged(s, "what follows a gzip member is neither a member nor the end");
        XP_TRY(fill(s));
    }
    return XP_OK;
}

static xp_status read_gzip(xp_byte_source *s, char *out, size_t room, size_t *n) {
    s->z.next_out = (Bytef *)out;
    s->z.avail_out = (uInt)room;
    while (s->z.avail_out > 0) {
        bool more = true;
        if (!s->inside)
            XP_TRY(next_member(s, &more));
        if (!more)
            break;
        if (s->start == s->end)
            XP_TRY(fill(s));
        if (s->start == s->end)
            return damaged(s, "unexpected end of file inside a gzip member");
        s->z.next_in = s->in + s->start;
        s->z.avail_in = (uInt)(s->end - s->start);
        int code = inflate(&s->z, Z_NO_FLUSH);
        s->start = s->end - s->z.avail_in;
        if (code == Z_STREAM_END)
            s->inside = false;
        else if (code == Z_MEM_ERROR)
            return xp_error(XP_ENOMEM, "%s: out of memory", s->name);
        else if (code != Z_OK && code != Z_BUF_ERROR)
            return damaged(s, s->z.msg != NULL ? s->z.msg : "damaged gzip member");
    }
    *n = room - s->z.avail_out;
    return XP_OK;
}

static xp_status read_zstd(xp_byte_source *s, char *out, size_t room, size_t *n) {
    ZSTD_outBuffer to = {out, room, 0};
    while (to.pos < to.size) {
        if (s->start == s->end)
            XP_TRY(fill(s));
        /* With its input used up the decoder may still hold output back: it says so by filling `to`. */
        ZSTD_inBuffer from = {s->in + s->start, s->end - s->start, 0};
        if (from.size == 0 && !s->inside)
            break;
        size_t before = to.pos;
        size_t hint = ZSTD_decompressStream(s->zstd, &to, &from);
        s->start += from.pos;
        if (ZSTD_isError(hint))
            return damaged(s, ZSTD_getErrorName(hint));
        s->inside = hint != 0;
        if (from.size == 0 && to.pos == before && s->inside)
            return damaged(s, "unexpected end of file inside a Zstandard frame");
    }
    *n = to.pos;
    return XP_OK;
}

static xp_status choose(xp_byte_source *s) {
    XP_TRY(fill(s));
    const unsigned char *m = s->in;
    size_t n = s->end - s->start;
    bool gzip = n >= 2 && m[0] == 0x1f && m[1] == 0x8b;
    uint32_t magic = n < MAGIC_SIZE
                         ? 0
                         : m[0] | (uint32_t)m[1] << 8 | (uint32_t)m[2] << 16 | (uint32_t)m[3] << 24;
    bool zstd = magic == ZSTD_MAGICNUMBER ||
                (magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
    if (!gzip && xp_data_name_ends(s->path, ".gz"))
        return xp_error(XP_EFORMAT, "%s ends in .gz but is not gzip%s", s->name,
                        n == 0 ? ": it is empty"
                        : zstd ? ": it is Zstandard; name it .zst"
                               : "; if it is plain text, take .gz off its name");
    if (!zstd && xp_data_name_ends(s->path, ".zst"))
        return xp_error(XP_EFORMAT, "%s ends in .zst but is not Zstandard%s", s->name,
                        n == 0 ? ": it is empty"
                        : gzip ? ": it is gzip; name it .gz"
                               : "; if it is plain text, take .zst off its name");
    s->read = gzip ? read_gzip : zstd ? read_zstd : read_plain;
    if (gzip) {
        s->has_z = inflateInit2(&s->z, GZIP_WRAP) == Z_OK;
        s->inside = true;
    }
    if (zstd) {
        s->zstd = ZSTD_createDStream();
        s->inside = true;
        if (s->zstd != NULL)
            ZSTD_DCtx_setParameter(s->zstd, ZSTD_d_windowLogMax, ZSTD_LOG);
    }
    if ((gzip && !s->has_z) || (zstd && s->zstd == NULL))
        return xp_error(XP_ENOMEM, "%s: out of memory", s->name);
    return XP_OK;
}

xp_status xp_byte_source_open(const char *path, xp_byte_source **source) {
    bool is_stdin = strcmp(path, "-") == 0;
    xp_byte_source *s = calloc(1, sizeof *s);
    if (s == NULL || (s->in = malloc(IN_BYTES)) == NULL) {
        free(s);
        return xp_error(XP_ENOMEM, "%s: out of memory", path);
    }
    s->path = path;
    s->name = is_stdin ? "standard input" : path;
    s->fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    xp_status status =
        s->fd < 0 ? xp_error(XP_EIO, "cannot open %s: %s", s->name, strerror(errno)) : choose(s);
    if (status != XP_OK) {
        xp_byte_source_close(s);
        return status;
    }
    *source = s;
    return XP_OK;
}

void xp_byte_source_close(xp_byte_source *s) {
    if (s == NULL)
        return;
    if (s->has_z)
        inflateEnd(&s->z);
    ZSTD_freeDStream(s->zstd);
    if (s->fd > STDIN_FILENO)
        close(s->fd);
    free(s->in);
    free(s);
}

xp_status xp_byte_source_read(xp_byte_source *s, char *out, size_t room, size_t *n) {
    *n = 0;
    return s->read(s, out, room < ((size_t)1 << 30) ? room : (size_t)1 << 30, n);
}

int64_t xp_byte_source_position(const xp_byte_source *s) {
    return s->n_read - (int64_t)(s->end - s->start);
}
