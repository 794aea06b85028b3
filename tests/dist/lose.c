/*
 * lose.so, preloaded into one rank: that rank is lost, or its disk is full, at one call of the C
 * library on one path.
 *   LOSE_CALL  fsync, rename      the call
 *   LOSE_PATH  what the path ends with (of a rename: where from)
 *   LOSE_HOW   kill (SIGKILL), stop (SIGSTOP), full (ENOSPC)
 *   LOSE_WHEN  before, after      the call's own work
 */
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool is(const char *name, const char *value) {
    const char *text = getenv(name);
    return text && strcmp(text, value) == 0;
}

static bool is_the_call(const char *call, const char *path) {
    const char *end = getenv("LOSE_PATH");
    if (!end || !is("LOSE_CALL", call) || strlen(path) < strlen(end))
        return false;
    return strcmp(path + strlen(path) - strlen(end), end) == 0;
}

/* @return false: the call fails */
static bool lose(void) {
    if (is("LOSE_HOW", "full")) {
        errno = ENOSPC;
        return false;
    }
    raise(is("LOSE_HOW", "stop") ? SIGSTOP : SIGKILL);
    return true;
}

int fsync(int fd) {
    static int (*next)(int);
    char link[64], path[1024];
    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "fsync");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
    bool here = is_the_call("fsync", path);
    if (here && is("LOSE_WHEN", "before") && !lose())
        return -1;
    int result = next(fd);
    if (here && is("LOSE_WHEN", "after") && !lose())
        return -1;
    return result;
}

int rename(const char *from, const char *to) {
    static int (*next)(const char *, const char *);
    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "rename");
    bool here = is_the_call("rename", from);
    if (here && is("LOSE_WHEN", "before") && !lose())
        return -1;
    int result = next(from, to);
    if (here && is("LOSE_WHEN", "after") && !lose())
        return -1;
    return result;
}
