#include "core/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static xp_status system_error(const char *doing, const char *path) {
    return xp_error(errno == ENOENT ? XP_ENOENT : XP_EIO, "%s %s: %s", doing, path,
                    strerror(errno));
}

static xp_status read_all(int fd, const char *path, char *data, size_t n_bytes) {
    for (size_t done = 0; done < n_bytes;) {
        ssize_t n = read(fd, data + done, n_bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return system_error("cannot read", path);
        if (n == 0)
            return xp_error(XP_EIO, "cannot read %s: the file became shorter while being read",
                            path);
        done += (size_t)n;
    }
    data[n_bytes] = '\0';
    return XP_OK;
}

/* A pointer instead of the file: what a clone without Git LFS leaves behind. No file that is read
 * here starts like this. */
static xp_status refuse_lfs_pointer(const char *path, const void *data, size_t n_bytes) {
    static const char start[] = "version https://git-lfs.github.com/spec/";
    if (n_bytes < sizeof start - 1 || memcmp(data, start, sizeof start - 1) != 0)
        return XP_OK;
    return xp_error(
        XP_EFORMAT,
        "%s is a Git LFS pointer, not the file itself: run `git lfs pull` in that folder, "
        "or download the file",
        path);
}

/* Opening a pipe must not wait for its writer: O_NONBLOCK changes nothing for files. */
static xp_status open_to_read(const char *path, int *fd, struct stat *st) {
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return system_error("cannot open", path);
    xp_status status = XP_OK;
    if (fstat(*fd, st) != 0)
        status = system_error("cannot read", path);
    else if (S_ISDIR(st->st_mode))
        status = xp_error(XP_EIO, "cannot read %s: it is a folder", path);
    else if (S_ISFIFO(st->st_mode) || S_ISSOCK(st->st_mode))
        status = xp_error(XP_EIO, "cannot read %s: it is a pipe, not a regular file", path);
    if (status != XP_OK)
        close(*fd);
    return status;
}

xp_status xp_file_read(const char *path, size_t max_bytes, char **data, size_t *n_bytes) {
    int fd;
    struct stat st;
    XP_TRY(open_to_read(path, &fd, &st));
    xp_status status = XP_OK;
    if ((uint64_t)st.st_size > max_bytes)
        status = xp_error(XP_EFORMAT, "%s has %lld bytes, more than the %zu allowed here", path,
                          (long long)st.st_size, max_bytes);
    char *buffer = NULL;
    if (status == XP_OK) {
        buffer = malloc((size_t)st.st_size + 1);
        status = buffer == NULL ? xp_error(XP_ENOMEM, "%s: out of memory", path)
                                : read_all(fd, path, buffer, (size_t)st.st_size);
    }
    close(fd);
    if (status == XP_OK)
        status = refuse_lfs_pointer(path, buffer, (size_t)st.st_size);
    if (status != XP_OK) {
        free(buffer);
        return status;
    }
    *data = buffer;
    *n_bytes = (size_t)st.st_size;
    return XP_OK;
}

static xp_status write_and_sync(int fd, const char *path, const char *data, size_t n_bytes) {
    for (size_t done = 0; done < n_bytes;) {
        ssize_t n = write(fd, data + done, n_bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return system_error("cannot write", path);
        done += (size_t)n;
    }
    if (fsync(fd) != 0)
        return system_error("cannot sync", path);
    return XP_OK;
}

xp_status xp_file_write_atomic(const char *path, const void *data, size_t n_bytes) {
    char tmp[PATH_MAX];
    struct stat st;
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return xp_error(XP_EIO, "cannot write %s: it is a %s; give the name of a file", path,
                        S_ISDIR(st.st_mode) ? "folder" : "device or pipe");
    if ((size_t)snprintf(tmp, sizeof tmp, "%s.tmp", path) >= sizeof tmp)
        return xp_error(XP_EINVAL, "path too long: %s", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return system_error("cannot create", tmp);
    xp_status status = write_and_sync(fd, tmp, data, n_bytes);
    if (close(fd) != 0 && status == XP_OK)
        status = system_error("cannot write", tmp);
    if (status == XP_OK && rename(tmp, path) != 0)
        status = system_error("cannot rename to", path);
    if (status != XP_OK) {
        unlink(tmp);
        return status;
    }
    strcpy(tmp, path);
    return xp_file_sync_folder(dirname(tmp));
}

xp_status xp_file_sync_folder(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == EACCES)
        return XP_OK; /* it may be written but not read: it cannot be synced */
    if (fd < 0)
        return system_error("cannot open folder", path);
    /* Some file systems cannot sync folders; then there is nothing more to be done. */
    int result = fsync(fd);
    if (result != 0 && errno != EINVAL && errno != ENOTSUP) {
        xp_status status = system_error("cannot sync folder", path);
        close(fd);
        return status;
    }
    close(fd);
    return XP_OK;
}

/* A new name is durable when its folder is synced. */
static xp_status make_folder(const char *path) {
    if (mkdir(path, 0777) != 0)
        return errno == EEXIST ? XP_OK : system_error("cannot create folder", path);
    char parent[PATH_MAX];
    strcpy(parent, path);
    return xp_file_sync_folder(dirname(parent));
}

xp_status xp_folder_create(const char *path) {
    char part[PATH_MAX];
    bool is_folder = false;
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof part)
        return xp_error(XP_EINVAL, "cannot create folder \"%s\": %s", path,
                        n == 0 ? "the name is empty" : "the name is too long");
    memcpy(part, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (part[i] != '/' && part[i] != '\0')
            continue;
        char kept = part[i];
        part[i] = '\0';
        XP_TRY(make_folder(part));
        part[i] = kept;
    }
    XP_TRY(xp_path_is_folder(path, &is_folder));
    if (!is_folder)
        return xp_error(XP_EIO, "cannot create folder %s: a file of that name is in the way", path);
    return XP_OK;
}

static xp_status visit_entries(DIR *folder, const char *path, xp_folder_entry_fn entry,
                               void *context) {
    for (;;) {
        errno = 0;
        const struct dirent *found = readdir(folder);
        if (found == NULL)
            return errno == 0 ? XP_OK : system_error("cannot list folder", path);
        if (strcmp(found->d_name, ".") != 0 && strcmp(found->d_name, "..") != 0)
            XP_TRY(entry(context, path, found->d_name));
    }
}

xp_status xp_folder_each(const char *path, xp_folder_entry_fn entry, void *context) {
    DIR *folder = opendir(path);
    if (folder == NULL)
        return system_error("cannot open folder", path);
    xp_status status = visit_entries(folder, path, entry, context);
    closedir(folder);
    return status;
}

static xp_status remove_entry(void *context, const char *folder, const char *name) {
    (void)context;
    char *child = xp_path_join(folder, name);
    struct stat st;
    xp_status status = XP_OK;
    if (child == NULL)
        return xp_error(XP_ENOMEM, "%s: out of memory", folder);
    if (lstat(child, &st) != 0)
        status = system_error("cannot look at", child);
    else if (S_ISDIR(st.st_mode))
        status = xp_folder_remove(child);
    else if (unlink(child) != 0)
        status = system_error("cannot remove", child);
    free(child);
    return status;
}

xp_status xp_folder_remove(const char *path) {
    xp_status status = xp_folder_each(path, remove_entry, NULL);
    if (status == XP_ENOENT) {
        struct stat st; /* the folder itself is gone, not something inside it */
        if (lstat(path, &st) != 0 && errno == ENOENT)
            return XP_OK;
    }
    if (status == XP_OK && rmdir(path) != 0)
        status = system_error("cannot remove folder", path);
    return status;
}

/* @param[out] mode  0: nothing is there */
static xp_status look_at(const char *path, mode_t *mode) {
    struct stat st;
    *mode = 0;
    if (stat(path, &st) == 0) {
        *mode = st.st_mode;
        return XP_OK;
    }
    if (errno != ENOENT)
        return xp_error(XP_EIO, "cannot look at %s: %s", path, strerror(errno));
    if (lstat(path, &st) == 0)
        return xp_error(XP_EIO, "%s is a link to something that is not there", path);
    return errno == ENOENT ? XP_OK
                           : xp_error(XP_EIO, "cannot look at %s: %s", path, strerror(errno));
}

xp_status xp_path_exists(const char *path, bool *exists) {
    mode_t mode = 0;
    XP_TRY(look_at(path, &mode));
    *exists = mode != 0;
    return XP_OK;
}

xp_status xp_path_is_folder(const char *path, bool *folder) {
    mode_t mode = 0;
    XP_TRY(look_at(path, &mode));
    *folder = S_ISDIR(mode);
    return XP_OK;
}

char *xp_path_join(const char *a, const char *b) {
    size_t n_a = strlen(a), n_b = strlen(b);
    char *path = malloc(n_a + n_b + 2);
    if (path == NULL)
        return NULL;
    memcpy(path, a, n_a);
    if (n_a > 0 && a[n_a - 1] != '/')
        path[n_a++] = '/';
    memcpy(path + n_a, b, n_b + 1);
    return path;
}

xp_status xp_file_map_open(const char *path, xp_file_map *map) {
    int fd;
    struct stat st;
    XP_TRY(open_to_read(path, &fd, &st));
    xp_status status = XP_OK;
    void *data = NULL;
    if (!S_ISREG(st.st_mode))
        status = xp_error(XP_EIO, "cannot read %s: it is not a regular file", path);
    else if (st.st_size > 0) {
        data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            status = system_error("cannot map", path);
    }
    close(fd);
    XP_TRY(status);
    xp_file_map made = {.data = data, .n_bytes = (size_t)st.st_size};
    status = refuse_lfs_pointer(path, made.data, made.n_bytes);
    if (status == XP_OK)
        *map = made;
    else
        xp_file_map_close(&made);
    return status;
}

void xp_file_map_close(xp_file_map *map) {
    if (map->data != NULL)
        munmap((void *)(uintptr_t)map->data, map->n_bytes);
    *map = (xp_file_map){0};
}

double xp_time_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int64_t xp_process_peak_rss(void) {
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0)
        return 0;
    return (int64_t)usage.ru_maxrss * 1024;
}

int64_t xp_process_rss(void) {
    FILE *file = fopen("/proc/self/statm", "re");
    if (file == NULL)
        return 0;
    long long size = 0, resident = 0;
    int n = fscanf(file, "%lld %lld", &size, &resident);
    fclose(file);
    return n == 2 ? (int64_t)resident * sysconf(_SC_PAGESIZE) : 0;
}

/* ---- a folder below ---------------------------------------------------------------------- */

typedef struct search {
    const char *inside;
    char *below;
    size_t n_bytes;
} search;

static xp_status look_below(void *context, const char *folder, const char *name) {
    const search *s = context;
    char path[PATH_MAX], inside[PATH_MAX];
    struct stat st;
    const int n = snprintf(path, sizeof path, "%s/%s", folder, name);
    const int k = snprintf(inside, sizeof inside, "%s/%s", path, s->inside);
    if (n >= (int)s->n_bytes || k >= (int)sizeof inside || stat(inside, &st) != 0)
        return XP_OK;
    if (s->below[0] == '\0' || strcmp(path, s->below) < 0)
        memcpy(s->below, path, (size_t)n + 1);
    return XP_OK;
}

bool xp_folder_find_below(const char *path, const char *inside, char *below, size_t n_bytes) {
    search s = {.inside = inside, .below = below, .n_bytes = n_bytes};
    char plain[PATH_MAX];
    size_t n = strlen(path);
    below[0] = '\0';
    while (n > 1 && path[n - 1] == '/')
        n--;
    if (n >= sizeof plain)
        return false;
    memcpy(plain, path, n);
    plain[n] = '\0';
    if (xp_folder_each(plain, look_below, &s) != XP_OK) {
        xp_error_clear();
        below[0] = '\0';
    }
    return below[0] != '\0';
}
