#include "launch/sweep.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "core/file.h"

#define MPIRUN_END_S 5

static void pause_s(double seconds) {
    nanosleep(&(struct timespec){.tv_nsec = (long)(seconds * 1e9)}, NULL);
}

void xp_sweeper_open(xp_sweeper *s) {
    const char *base = getenv("TMPDIR");
    *s = (xp_sweeper){.line = -1};
    /* Sockets below it have paths of at most 108 characters. */
    if (!base || !base[0] || strlen(base) > 30)
        base = "/tmp";
    snprintf(s->folder, sizeof s->folder, "%s/expar-launch-XXXXXX", base);
    snprintf(s->memory, sizeof s->memory, "/dev/shm/expar-launch-XXXXXX");
    if (!mkdtemp(s->folder))
        s->folder[0] = '\0';
    if (!mkdtemp(s->memory))
        s->memory[0] = '\0';
}

/* Only system calls: the other threads of the forked process are not there. */
static _Noreturn void sweep(const xp_sweeper *s, int line, pid_t mpirun) {
    char byte;
    ssize_t n;
    setsid();
    for (int signal_number = 1; signal_number < 32; signal_number++)
        signal(signal_number, SIG_IGN);
    for (int fd = 0; fd < 1024; fd++)
        if (fd != line)
            close(fd);
    do
        n = read(line, &byte, 1);
    while (n < 0 && errno == EINTR);
    for (int i = 0; i < MPIRUN_END_S * 50 && kill(mpirun, 0) == 0; i++)
        pause_s(0.02);
    if (kill(mpirun, SIGKILL) == 0)
        pause_s(0.1);
    execl("/bin/rm", "rm", "-rf", "--", s->folder[0] ? s->folder : s->memory,
          s->memory[0] ? s->memory : (char *)NULL, (char *)NULL);
    _exit(1);
}

void xp_sweeper_start(xp_sweeper *s, pid_t mpirun) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return;
    s->sweeper = fork();
    if (s->sweeper == 0)
        sweep(s, ends[0], mpirun);
    close(ends[0]);
    s->line = ends[1];
}

static void remove_folder(char *name) {
    if (name[0] && xp_folder_remove(name) != XP_OK)
        xp_error_clear(); /* the run's own result counts */
    name[0] = '\0';
}

void xp_sweeper_close(xp_sweeper *s) {
    remove_folder(s->folder);
    remove_folder(s->memory);
    if (s->line < 0)
        return;
    /* Nothing is left for it to do. It may be gone or stopped: it is not asked to leave. */
    if (s->sweeper > 0 && kill(s->sweeper, SIGKILL) == 0)
        waitpid(s->sweeper, NULL, 0);
    close(s->line);
    s->line = -1;
}

/* ---- processes --------------------------------------------------------------------------- */

static pid_t parent_of(const char *pid) {
    char path[300], text[512];
    snprintf(path, sizeof path, "/proc/%s/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    const size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = '\0';
    int parent = 0;
    const char *after_name = strrchr(text, ')');
    return after_name && sscanf(after_name, ") %*c %d", &parent) == 1 ? parent : 0;
}

/* @return how many there are, dead ones that wait to be reaped among them */
static int kill_once(pid_t except) {
    DIR *all = opendir("/proc");
    const pid_t self = getpid();
    int n = 0;
    for (const struct dirent *entry; all && (entry = readdir(all)) != NULL;) {
        const pid_t pid = (pid_t)atoi(entry->d_name);
        if (pid <= 0 || pid == except || parent_of(entry->d_name) != self)
            continue;
        kill(pid, SIGKILL);
        waitpid(pid, NULL, WNOHANG);
        n++;
    }
    if (all)
        closedir(all);
    return n;
}

void xp_kill_children(pid_t except, double seconds) {
    const double until = xp_time_s() + seconds;
    while (kill_once(except) > 0 && xp_time_s() < until)
        pause_s(0.005);
}
