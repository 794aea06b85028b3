#include "core/bus_error.h"

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#define LINE_BYTES 4608 /* a path and what stands before it */

/* "start-end perms offset dev inode path" */
static const char *path_when_inside(const char *line, uintptr_t address) {
    uintptr_t bounds[2] = {0, 0};
    for (int i = 0; i < 2; i++, line++) {
        for (; *line != '\0' && strchr("0123456789abcdef", *line) != NULL; line++)
            bounds[i] = bounds[i] * 16 + (uintptr_t)(*line - (*line <= '9' ? '0' : 'a' - 10));
        if (*line == '\0')
            return NULL;
    }
    return address >= bounds[0] && address < bounds[1] ? strchr(line, '/') : NULL;
}

static void say(const char *text) {
    if (write(STDERR_FILENO, text, strlen(text)) < 0)
        return;
}

/* Only calls that are safe in a signal handler. @return false: the address is in no mapped file */
static bool name_file(uintptr_t address) {
    char line[LINE_BYTES];
    size_t n = 0;
    bool found = false;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    for (char c; !found && read(fd, &c, 1) == 1;) {
        if (c != '\n') {
            if (n < sizeof line - 1)
                line[n++] = c;
            continue;
        }
        line[n] = '\0';
        n = 0;
        const char *path = path_when_inside(line, address);
        if (path == NULL)
            continue;
        found = true;
        say("error: cannot read ");
        say(path);
        say(": the file became shorter, or its disk failed, while it was mapped; leave data alone "
            "while a run reads it\n");
    }
    close(fd);
    return found;
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
    (void)context;
    if (name_file((uintptr_t)info->si_addr))
        _exit(1);
    signal(number, SIG_DFL); /* the instruction runs again, and the default follows */
}

void xp_bus_error_report(void) {
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
}
