#include "launch/shim.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "launch/remote.h"

/* ---- the rank's side --------------------------------------------------------------------- */

bool xp_shim_wanted(void) {
    return getenv(XP_LAUNCH_SOCKET) != NULL;
}

bool xp_rank_has_shim(void) {
    return getenv(XP_LAUNCH_REPORT) != NULL;
}

static void report(const xp_launch_message *message) {
    const char *fd = getenv(XP_LAUNCH_REPORT);
    if (fd)
        xp_launch_send(atoi(fd), message, NULL); /* a shim that is gone has no use for it */
}

void xp_rank_report_begun(void) {
    report(&(xp_launch_message){.kind = XP_LAUNCH_BEGUN});
}

void xp_rank_report_failure(int code, bool secondhand, const char *text) {
    xp_launch_message message = {.kind = XP_LAUNCH_END};
    message.end.code = code;
    message.end.reported = 1;
    message.end.secondhand = secondhand;
    snprintf(message.end.text, sizeof message.end.text, "%s", text);
    report(&message);
}

/* ---- the shim's side -------------------------------------------------------------------- */

typedef struct shim {
    int launcher; /* socket; -1: the launcher is on another node */
    int report;   /* from the rank */
    int signals;  /* read end: a byte for each signal */
    int out[2];   /* what the rank gets as stdout and stderr, or -1: as they are */
    int copied;   /* the rank's stdout on another node: mpirun's is a terminal, and that of the
                     launcher may be a file; -1: none */
    pid_t rank;
    xp_rank_end end;
    bool ended;
    struct sigaction sigpipe; /* as the shim found it */
} shim;

/* The only thing that a signal handler can reach. */
static int signal_pipe = -1;

static void on_signal(int signal) {
    const int saved = errno;
    const char byte = (char)signal;
    if (write(signal_pipe, &byte, 1) != 1)
        errno = 0; /* full: the shim wakes up anyway */
    errno = saved;
}

static bool open_signals(shim *g) {
    static const int taken[] = {SIGCHLD, SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2};
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
        return false;
    g->signals = ends[0];
    signal_pipe = ends[1];
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    for (size_t i = 0; i < sizeof taken / sizeof taken[0]; i++)
        sigaction(taken[i], &action, NULL);
    action.sa_handler = SIG_IGN; /* an output that nobody reads any more is no reason to end */
    sigaction(SIGPIPE, &action, &g->sigpipe);
    return true;
}

static int rank_number(void) {
    const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (getenv(names[i]))
            return atoi(getenv(names[i]));
    return 0;
}

/* In the new process. Signals that stop a run stay blocked until the rank takes them, so that none
 * is lost and none kills it while it starts. The process group is its own: what mpirun sends to the
 * shim's group is for the shim. */
static _Noreturn void become_rank(const shim *g, int report_fd, pid_t parent, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    setpgid(0, 0);
    static const int stops[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1};
    sigset_t blocked;
    sigemptyset(&blocked);
    for (size_t i = 0; i < sizeof stops / sizeof stops[0]; i++) {
        signal(stops[i], SIG_DFL);
        sigaddset(&blocked, stops[i]);
    }
    sigprocmask(SIG_SETMASK, &blocked, NULL);
    sigaction(SIGPIPE, &g->sigpipe, NULL);
    for (int i = 0; i < 2; i++)
        if (g->out[i] >= 0)
            dup2(g->out[i], i + 1);
    char number[16];
    snprintf(number, sizeof number, "%d", report_fd);
    fcntl(report_fd, F_SETFD, 0);
    setenv(XP_LAUNCH_REPORT, number, 1);
    unsetenv(XP_LAUNCH_SOCKET);
    execv(argv[0], argv); /* under its own name */
    execv("/proc/self/exe", argv);
    _exit(127);
}

static bool start_rank(shim *g, char **argv) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return false;
    const pid_t self = getpid();
    g->report = ends[0];
    g->rank = fork();
    if (g->rank == 0)
        become_rank(g, ends[1], self, argv);
    close(ends[1]);
    for (int i = 0; i < 2; i++)
        if (g->out[i] >= 0)
            close(g->out[i]);
    return g->rank > 0;
}

static void tell(const shim *g, const xp_launch_message *message) {
    if (g->launcher >= 0)
        xp_launch_send(g->launcher, message, NULL);
    else
        xp_remote_write(message);
}

static void read_report(shim *g) {
    xp_launch_message message;
    if (!xp_launch_receive(g->report, &message, NULL)) {
        close(g->report);
        g->report = -1;
        return;
    }
    message.end.rank = g->end.rank;
    if (message.kind == XP_LAUNCH_BEGUN)
        tell(g, &message);
    else if (message.kind == XP_LAUNCH_END)
        g->end = message.end;
}

/* @return false: nothing (more) to copy */
static bool copy_output(shim *g) {
    char bytes[4096];
    const ssize_t n = g->copied < 0 ? 0 : read(g->copied, bytes, sizeof bytes);
    for (ssize_t done = 0, k; done < n; done += k)
        if ((k = write(STDOUT_FILENO, bytes + done, (size_t)(n - done))) <= 0)
            return true; /* nobody reads it any more, but the rank must not block */
    if (n == 0 && g->copied >= 0) {
        close(g->copied);
        g->copied = -1;
    }
    return n > 0;
}

static void reap(shim *g) {
    int how;
    if (g->ended || waitpid(g->rank, &how, WNOHANG) != g->rank)
        return;
    g->ended = true;
    struct pollfd last = {.fd = g->report, .events = POLLIN};
    while (g->report >= 0 && poll(&last, 1, 0) == 1)
        read_report(g);
    while (copy_output(g))
        continue;
    g->end.signal = WIFSIGNALED(how) ? WTERMSIG(how) : 0;
    g->end.code = WIFEXITED(how) ? WEXITSTATUS(how) : 1;
    tell(g, &(xp_launch_message){.kind = XP_LAUNCH_END, .end = g->end});
}

static void pass_on(const shim *g, int signal) {
    if (!g->ended)
        kill(g->rank, signal);
}

static void take_signals(shim *g) {
    char bytes[64];
    const ssize_t n = read(g->signals, bytes, sizeof bytes);
    for (ssize_t i = 0; i < n; i++) {
        if (g->launcher >= 0)
            continue; /* the launcher says what to do */
        if (bytes[i] == SIGUSR1 || bytes[i] == SIGUSR2)
            pass_on(g, bytes[i] == SIGUSR1 ? SIGTERM : SIGINT);
        else if (bytes[i] != SIGCHLD)
            pass_on(g, SIGKILL);
    }
    reap(g);
}

/* @return false: leave */
static bool obey(shim *g) {
    xp_launch_message message;
    if (!xp_launch_receive(g->launcher, &message, NULL) || message.kind == XP_LAUNCH_LEAVE) {
        pass_on(g, SIGKILL);
        return false;
    }
    if (message.kind == XP_LAUNCH_SIGNAL)
        pass_on(g, message.value);
    else if (message.kind == XP_LAUNCH_KILL)
        pass_on(g, SIGKILL);
    return true;
}

static void serve(shim *g) {
    /* Without the launcher's word the shim ends with its rank. */
    while (g->launcher >= 0 || !g->ended) {
        struct pollfd fds[4] = {{.fd = g->signals, .events = POLLIN},
                                {.fd = g->report, .events = POLLIN},
                                {.fd = g->launcher, .events = POLLIN},
                                {.fd = g->copied, .events = POLLIN}};
        if (poll(fds, 4, -1) < 0)
            continue;
        if (fds[3].revents)
            copy_output(g);
        if (fds[1].revents)
            read_report(g);
        if (fds[0].revents)
            take_signals(g);
        if (fds[2].revents && !obey(g))
            return;
    }
}

int xp_shim_run(char **argv) {
    shim g = {.report = -1, .out = {-1, -1}, .copied = -1, .end = {.rank = rank_number()}};
    g.launcher = xp_launch_connect(getenv(XP_LAUNCH_SOCKET));
    if (g.launcher < 0)
        prctl(PR_SET_PDEATHSIG, SIGTERM); /* mpirun's daemon on this node stands for the launcher */
    xp_launch_message message = {.kind = XP_LAUNCH_HELLO, .pid = (int32_t)getpid(), .end = g.end};
    if (!open_signals(&g))
        return 1;
    tell(&g, &message);
    if (g.launcher >= 0 &&
        (!xp_launch_receive(g.launcher, &message, g.out) || message.kind != XP_LAUNCH_START))
        return 0; /* the launch is over before it has begun */
    int ends[2];
    if (g.launcher < 0 && pipe2(ends, O_CLOEXEC) == 0) {
        g.copied = ends[0];
        g.out[0] = ends[1];
    }
    if (!start_rank(&g, argv)) {
        g.end.code = 1;
        g.end.reported = 1;
        snprintf(g.end.text, sizeof g.end.text, "rank %d: cannot start its process: %s", g.end.rank,
                 strerror(errno));
        g.ended = true;
        tell(&g, &(xp_launch_message){.kind = XP_LAUNCH_END, .end = g.end});
    }
    serve(&g);
    return 0;
}
