/* mpirun's process, and the launcher's signals. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
#include "launch/launcher.h"

static const int taken[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGCHLD};
#define N_TAKEN (sizeof taken / sizeof taken[0])

/* The only thing that a signal handler can reach. */
static int signal_pipe = -1;

static void on_signal(int signal) {
    const int saved = errno;
    const char byte = (char)signal;
    if (write(signal_pipe, &byte, 1) != 1)
        errno = 0; /* full: the launcher wakes up anyway */
    errno = saved;
}

xp_status xp_launcher_open_signals(launcher *l) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
        return xp_error(XP_EIO, "cannot make a pipe: %s", strerror(errno));
    l->signals = ends[0];
    signal_pipe = ends[1];
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    for (size_t i = 0; i < N_TAKEN; i++) {
        const bool may_be_ignored = taken[i] == SIGHUP || taken[i] == SIGUSR1; /* nohup */
        if (sigaction(taken[i], NULL, &before) != 0 ||
            (may_be_ignored && before.sa_handler == SIG_IGN))
            continue;
        sigaction(taken[i], &action, NULL);
    }
    return XP_OK;
}

void xp_launcher_close_signals(launcher *l) {
    for (size_t i = 0; i < N_TAKEN; i++)
        signal(taken[i], SIG_DFL);
    if (l->signals >= 0) {
        close(l->signals);
        close(signal_pipe);
    }
    l->signals = signal_pipe = -1;
}

/* In the new process, between fork and exec: system calls only. */
static _Noreturn void become_mpirun(const int out[2], const int err[2], pid_t parent,
                                    char **command, char **environment) {
    const int null = open("/dev/null", O_RDONLY);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* mpirun ends its ranks and removes its files on it */
    setsid();
    if (getppid() != parent || null < 0)
        _exit(127);
    for (size_t i = 0; i < N_TAKEN; i++)
        signal(taken[i], SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    dup2(null, 0);
    dup2(out[1], 1);
    dup2(err[1], 2);
    execve(command[0], command, environment);
    _exit(127);
}

static xp_status spawn(launcher *l, char **command, char **environment) {
    int out[2], err[2];
    if (pipe2(out, O_CLOEXEC) != 0)
        return xp_error(XP_EIO, "cannot make a pipe: %s", strerror(errno));
    if (pipe2(err, O_CLOEXEC) != 0) {
        close(out[0]);
        close(out[1]);
        return xp_error(XP_EIO, "cannot make a pipe: %s", strerror(errno));
    }
    const pid_t self = getpid();
    l->mpirun = fork();
    if (l->mpirun == 0)
        become_mpirun(out, err, self, command, environment);
    close(out[1]);
    close(err[1]);
    l->out.fd = out[0];
    l->err.fd = err[0];
    if (l->mpirun > 0)
        return XP_OK;
    l->mpirun = 0;
    return xp_error(XP_ENOMEM, "cannot start mpirun: %s", strerror(errno));
}

xp_status xp_launcher_start_mpirun(launcher *l, const xp_mpirun *mpirun) {
    const xp_launch_args *a = l->args;
    const bool local = !a->hostfile && !a->hosts && a->n_nodes == 1;
    const xp_mpirun_job job = {.n_ranks = a->n_ranks,
                               .local = local,
                               .hostfile = a->hostfile,
                               .hosts = a->hosts,
                               .ranks_per_node = a->n_ranks / a->n_nodes,
                               .argv = a->argv,
                               .socket = l->name,
                               .folder = l->sweeper.folder[0] ? l->sweeper.folder : NULL,
                               .memory = l->sweeper.memory[0] ? l->sweeper.memory : NULL};
    char **environment = xp_mpirun_environment(mpirun, &job, environ);
    char **command = environment ? xp_mpirun_command(mpirun, &job, environment) : NULL;
    xp_status status = command && environment
                           ? spawn(l, command, environment)
                           : xp_error(XP_ENOMEM, "no memory for mpirun's command line");
    xp_words_free(command);
    xp_words_free(environment);
    return status;
}
