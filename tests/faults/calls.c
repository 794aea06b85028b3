/*
 * calls.so, preloaded into a program: one call of the C library fails, once.
 *   CALLS_ROOT    files: calls on paths below this absolute path count
 *   CALLS_MEMORY  instead of files, allocations that the program itself asks for (of the object whose
 *                 path holds this text)
 *   CALLS_AT      the call that fails, from 1; 0 = none
 *   CALLS_ERRNO   with what (EIO)
 *   CALLS_LOG     gets a line for each call that counts: number, name, path
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_int n_calls;

/* Without the functions that this file replaces. */
static void note(int number, const char *name, const char *path) {
    char line[1200];
    const char *log = getenv("CALLS_LOG");
    if (!log)
        return;
    int n = snprintf(line, sizeof line, "%d %s %s\n", number, name, path);
    long fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (fd >= 0) {
        syscall(SYS_write, fd, line, n);
        syscall(SYS_close, fd);
    }
}

static bool count(const char *name, const char *path) {
    const char *at = getenv("CALLS_AT"), *error = getenv("CALLS_ERRNO");
    int kept = errno, number = atomic_fetch_add(&n_calls, 1) + 1;
    note(number, name, path);
    errno = kept;
    if (!at || atoi(at) != number)
        return false;
    errno = error ? atoi(error) : EIO;
    return true;
}

static bool fails(const char *name, const char *path) {
    const char *root = getenv("CALLS_ROOT");
    return root && path && strncmp(path, root, strlen(root)) == 0 && count(name, path);
}

static bool fails_fd(const char *name, int fd) {
    char link[64], path[1024];
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    errno = kept;
    return fails(name, path);
}

static void *next(const char *name) {
    return dlsym(RTLD_NEXT, name);
}

/* ---- files ------------------------------------------------------------------------------- */

int open(const char *path, int flags, ...) {
    va_list args;
    va_start(args, flags);
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(args, int) : 0;
    va_end(args);
    if (fails("open", path))
        return -1;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

ssize_t read(int fd, void *data, size_t n) {
    return fails_fd("read", fd) ? -1 : syscall(SYS_read, fd, data, n);
}

ssize_t write(int fd, const void *data, size_t n) {
    return fails_fd("write", fd) ? -1 : syscall(SYS_write, fd, data, n);
}

ssize_t pread(int fd, void *data, size_t n, off_t at) {
    return fails_fd("pread", fd) ? -1 : syscall(SYS_pread64, fd, data, n, at);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    return fails_fd("pwrite", fd) ? -1 : syscall(SYS_pwrite64, fd, data, n, at);
}

int fsync(int fd) {
    return fails_fd("fsync", fd) ? -1 : (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    return fails_fd("fdatasync", fd) ? -1 : (int)syscall(SYS_fdatasync, fd);
}

/* As a file server does it: the descriptor is gone, and the data too. */
int close(int fd) {
    bool failed = fails_fd("close", fd);
    int kept = errno, result = (int)syscall(SYS_close, fd);
    errno = failed ? kept : errno;
    return failed ? -1 : result;
}

int ftruncate(int fd, off_t n) {
    return fails_fd("ftruncate", fd) ? -1 : (int)syscall(SYS_ftruncate, fd, n);
}

int fallocate(int fd, int mode, off_t at, off_t n) {
    return fails_fd("fallocate", fd) ? -1 : (int)syscall(SYS_fallocate, fd, mode, at, n);
}

off_t lseek(int fd, off_t at, int whence) {
    return fails_fd("lseek", fd) ? -1 : syscall(SYS_lseek, fd, at, whence);
}

int rename(const char *from, const char *to) {
    return fails("rename", from) ? -1
                                 : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    return fails("renameat2", from) ? -1
                                    : (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
}

int mkdir(const char *path, mode_t mode) {
    return fails("mkdir", path) ? -1 : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

int unlink(const char *path) {
    return fails("unlink", path) ? -1 : (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int rmdir(const char *path) {
    return fails("rmdir", path) ? -1 : (int)syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
}

int stat(const char *restrict path, struct stat *restrict st) {
    return fails("stat", path) ? -1 : (int)syscall(SYS_newfstatat, AT_FDCWD, path, st, 0);
}

int lstat(const char *restrict path, struct stat *restrict st) {
    return fails("lstat", path)
               ? -1
               : (int)syscall(SYS_newfstatat, AT_FDCWD, path, st, AT_SYMLINK_NOFOLLOW);
}

int fstat(int fd, struct stat *st) {
    return fails_fd("fstat", fd) ? -1 : (int)syscall(SYS_fstat, fd, st);
}

void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    if (fd >= 0 && fails_fd("mmap", fd))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, n, protection, flags, fd, offset);
}

int fcntl(int fd, int command, ...) {
    va_list args;
    va_start(args, command);
    void *argument = va_arg(args, void *);
    va_end(args);
    bool locks = command == F_OFD_SETLK || command == F_OFD_GETLK;
    return locks && fails_fd("fcntl", fd) ? -1 : (int)syscall(SYS_fcntl, fd, command, argument);
}

DIR *opendir(const char *path) {
    DIR *(*real)(const char *) = next("opendir");
    return fails("opendir", path) ? NULL : real(path);
}

struct dirent *readdir(DIR *folder) {
    struct dirent *(*real)(DIR *) = next("readdir");
    return fails_fd("readdir", dirfd(folder)) ? NULL : real(folder);
}

FILE *fopen(const char *restrict path, const char *restrict mode) {
    FILE *(*real)(const char *, const char *) = next("fopen");
    return fails("fopen", path) ? NULL : real(path, mode);
}

int fflush(FILE *file) {
    int (*real)(FILE *) = next("fflush");
    return file && fails_fd("fflush", fileno(file)) ? EOF : real(file);
}

/* ---- memory ------------------------------------------------------------------------------ */

extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t each);
extern void *__libc_realloc(void *old, size_t n);
extern void *__libc_memalign(size_t align, size_t n);

static bool fails_memory(const char *name, const void *caller) {
    static _Thread_local bool inside; /* dladdr() and the log may allocate */
    const char *object = getenv("CALLS_MEMORY");
    Dl_info info;
    if (!object || inside)
        return false;
    inside = true;
    bool ours = dladdr(caller, &info) != 0 && info.dli_fname && strstr(info.dli_fname, object);
    bool failed = ours && count(name, info.dli_sname ? info.dli_sname : "?");
    inside = false;
    if (failed)
        errno = ENOMEM;
    return failed;
}

void *malloc(size_t n) {
    return fails_memory("malloc", __builtin_return_address(0)) ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t each) {
    return fails_memory("calloc", __builtin_return_address(0)) ? NULL : __libc_calloc(n, each);
}

void *realloc(void *old, size_t n) {
    return fails_memory("realloc", __builtin_return_address(0)) ? NULL : __libc_realloc(old, n);
}

void *aligned_alloc(size_t align, size_t n) {
    return fails_memory("aligned_alloc", __builtin_return_address(0)) ? NULL
                                                                      : __libc_memalign(align, n);
}

int posix_memalign(void **out, size_t align, size_t n) {
    if (fails_memory("posix_memalign", __builtin_return_address(0)))
        return ENOMEM;
    *out = __libc_memalign(align, n);
    return *out ? 0 : ENOMEM;
}
