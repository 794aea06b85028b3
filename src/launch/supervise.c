#include "launch/supervise.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include "core/file.h"
#include "launch/launcher.h"
#include "launch/remote.h"

#define SECOND_SIGNAL_S 1.0 /* `timeout` and some shells send a signal twice */
#define KILLED_S        1.0 /* what was told to end now has ended */
#define FOUND_S         1.0 /* the others, once the rank that found the failure has ended */
#define LEAVE_S         5.0 /* mpirun, once all ranks have ended */
#define HELLO_S         10  /* a shim that has connected says who it is */

/* ---- telling shims ---------------------------------------------------------------------- */

static void tell_all(launcher *l, xp_launch_kind kind, int value) {
    const xp_launch_message message = {.kind = kind, .value = value};
    for (int r = 0; r < l->args->n_ranks; r++)
        if (l->ranks[r].socket >= 0)
            xp_launch_send(l->ranks[r].socket, &message, NULL);
}

static bool any_remote(const launcher *l) {
    for (int r = 0; r < l->args->n_ranks; r++)
        if (l->ranks[r].present && l->ranks[r].socket < 0 && !l->outcomes[r].ended)
            return true;
    return false;
}

/* Shims on other nodes know these two signals, which mpirun passes on. */
static void pass_on(launcher *l, int signal) {
    tell_all(l, XP_LAUNCH_SIGNAL, signal);
    if (l->mpirun > 0 && any_remote(l))
        kill(l->mpirun, signal == SIGINT ? SIGUSR2 : SIGUSR1);
}

/* All ranks are to end now. */
static void end_all(launcher *l) {
    if (l->ending_s > 0)
        return;
    l->ending_s = xp_time_s();
    for (int r = 0; r < l->args->n_ranks; r++)
        l->outcomes[r].ended_by_launcher = !l->outcomes[r].ended;
    tell_all(l, XP_LAUNCH_KILL, 0);
    if (l->mpirun > 0 && (any_remote(l) || l->n_present < l->args->n_ranks))
        kill(l->mpirun, SIGTERM);
}

static void give_up(launcher *l, const char *text) {
    if (l->result->text[0] == '\0')
        snprintf(l->result->text, sizeof l->result->text, "%s", text);
    l->result->code = 1;
    end_all(l);
}

/* ---- what shims say --------------------------------------------------------------------- */

static void take_end(launcher *l, const xp_rank_end *end, bool vanished) {
    xp_rank_outcome *outcome = &l->outcomes[end->rank];
    if (outcome->ended)
        return;
    outcome->end = *end;
    outcome->ended = true;
    outcome->vanished = vanished;
    outcome->ended_s = xp_time_s();
    l->n_ended++;
    if ((vanished || end->code != 0 || end->signal != 0) && l->failed_s == 0)
        l->failed_s = outcome->ended_s;
    if (end->code != 0 && end->reported && !end->secondhand)
        l->found_s = outcome->ended_s;
}

static void take_message(launcher *l, const xp_launch_message *message) {
    const int r = message->end.rank;
    if (r < 0 || r >= l->args->n_ranks)
        return;
    launched_rank *rank = &l->ranks[r];
    if (message->kind == XP_LAUNCH_HELLO && !rank->present) {
        rank->present = true;
        l->n_present++;
    } else if (message->kind == XP_LAUNCH_BEGUN && !rank->begun) {
        rank->begun = true;
        l->n_begun++;
    } else if (message->kind == XP_LAUNCH_END) {
        take_end(l, &message->end, false);
    }
}

static void accept_shim(launcher *l) {
    const int socket = xp_launch_accept(l->listener);
    const struct timeval limit = {.tv_sec = HELLO_S};
    const int fds[2] = {STDOUT_FILENO, STDERR_FILENO};
    xp_launch_message hello;
    if (socket < 0)
        return;
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    const int n = l->args->n_ranks;
    if (!xp_launch_receive(socket, &hello, NULL) || hello.kind != XP_LAUNCH_HELLO ||
        hello.end.rank < 0 || hello.end.rank >= n || l->ranks[hello.end.rank].present ||
        !xp_launch_send(socket, &(xp_launch_message){.kind = XP_LAUNCH_START}, fds)) {
        close(socket);
        return;
    }
    l->ranks[hello.end.rank].socket = socket;
    take_message(l, &hello);
    if (l->ending_s > 0)
        xp_launch_send(socket, &(xp_launch_message){.kind = XP_LAUNCH_KILL}, NULL);
}

static void read_shim(launcher *l, int r) {
    xp_launch_message message;
    if (xp_launch_receive(l->ranks[r].socket, &message, NULL)) {
        message.end.rank = r;
        take_message(l, &message);
        return;
    }
    close(l->ranks[r].socket);
    l->ranks[r].socket = -1;
    take_end(l, &(xp_rank_end){.rank = r, .code = 1}, true);
}

/* ---- what mpirun says -------------------------------------------------------------------- */

static bool is_local(const launcher *l) {
    return l->args->n_nodes == 1 && !l->args->hostfile && !l->args->hosts;
}

static void take_line(launcher *l, char *line, int fd) {
    xp_launch_message message;
    bool whole;
    if (xp_remote_parse(line, &message, &whole)) {
        if (whole)
            take_message(l, &message);
        return;
    }
    if (is_local(l) || xp_output_is_noise(line)) {
        xp_kept_add(&l->kept, line);
        return;
    }
    size_t n = strlen(line);
    line[n++] = '\n'; /* where the NUL was */
    if (write(fd, line, n) < 0)
        return; /* nobody reads it any more */
}

static void take_out(void *context, char *line) {
    take_line(context, line, STDOUT_FILENO);
}

static void take_err(void *context, char *line) {
    take_line(context, line, STDERR_FILENO);
}

/* ---- signals and time -------------------------------------------------------------------- */

static void reap(launcher *l) {
    int how;
    if (l->mpirun > 0 && waitpid(l->mpirun, &how, WNOHANG) == l->mpirun) {
        l->mpirun = 0;
        l->mpirun_how = how;
    }
}

static void take_stop(launcher *l, int signal) {
    const double now = xp_time_s();
    if (l->leaving)
        return;
    if (l->stop_s == 0) {
        l->stop_s = now;
        if (l->n_begun == l->args->n_ranks) {
            pass_on(l, signal);
        } else { /* there is nothing to save yet */
            l->result->ended_by = signal;
            end_all(l);
        }
    } else if (now - l->stop_s > SECOND_SIGNAL_S) {
        l->result->stopped_now = true;
        end_all(l);
    }
}

static void take_signals(launcher *l) {
    char bytes[64];
    const ssize_t n = read(l->signals, bytes, sizeof bytes);
    for (ssize_t i = 0; i < n; i++)
        if (bytes[i] != SIGCHLD)
            take_stop(l, bytes[i]);
    reap(l);
}

/* mpirun has ended, and all that it wrote has been read. */
static void take_mpirun_end(launcher *l) {
    char text[256], how[64];
    if (l->n_ended == l->args->n_ranks || l->ending_s > 0)
        return;
    if (WIFSIGNALED(l->mpirun_how))
        snprintf(how, sizeof how, "was killed by signal %d", WTERMSIG(l->mpirun_how));
    else
        snprintf(how, sizeof how, "ended with exit code %d", WEXITSTATUS(l->mpirun_how));
    if (l->n_present < l->args->n_ranks)
        snprintf(text, sizeof text, "mpirun %s and started %d of %d ranks", how, l->n_present,
                 l->args->n_ranks);
    else
        snprintf(text, sizeof text, "mpirun %s; without it the ranks cannot go on", how);
    give_up(l, text);
}

static void look_at_time(launcher *l) {
    const double now = xp_time_s();
    char text[160];
    if (l->ending_s > 0)
        return;
    if (l->n_present < l->args->n_ranks && now - l->began_s > l->args->start_s &&
        l->failed_s == 0) {
        snprintf(text, sizeof text,
                 "mpirun has started %d of %d ranks within %g s (comm.init_timeout_seconds)",
                 l->n_present, l->args->n_ranks, l->args->start_s);
        give_up(l, text);
    } else if ((l->failed_s > 0 && now - l->failed_s > l->args->failure_s) ||
               (l->found_s > 0 && now - l->found_s > FOUND_S)) {
        end_all(l);
    }
}

/* @return false: it is over */
static bool go_on(launcher *l) {
    const double now = xp_time_s();
    const bool silent = l->out.fd < 0 && l->err.fd < 0;
    if (l->mpirun == 0 && silent)
        take_mpirun_end(l);
    look_at_time(l);
    if (l->n_ended == l->args->n_ranks && !l->leaving) {
        l->leaving = true;
        if (l->ending_s == 0)
            l->ending_s = now + LEAVE_S - KILLED_S;
        tell_all(l, XP_LAUNCH_LEAVE, 0);
    }
    return l->ending_s == 0 || (now - l->ending_s < KILLED_S && !(l->mpirun == 0 && silent));
}

/* ---- the loop ---------------------------------------------------------------------------- */

static void wait_for_events(launcher *l, struct pollfd *fds) {
    enum { SIGNALS, LISTENER, OUT, ERR, N_OTHERS };
    const int n = l->args->n_ranks;
    fds[SIGNALS] = (struct pollfd){.fd = l->signals, .events = POLLIN};
    fds[LISTENER] = (struct pollfd){.fd = l->listener, .events = POLLIN};
    fds[OUT] = (struct pollfd){.fd = l->out.fd, .events = POLLIN};
    fds[ERR] = (struct pollfd){.fd = l->err.fd, .events = POLLIN};
    for (int r = 0; r < n; r++)
        fds[N_OTHERS + r] = (struct pollfd){.fd = l->ranks[r].socket, .events = POLLIN};
    if (poll(fds, (nfds_t)(N_OTHERS + n), 100) <= 0)
        return;
    for (int r = 0; r < n; r++)
        if (fds[N_OTHERS + r].revents)
            read_shim(l, r);
    if (fds[OUT].revents)
        xp_output_read(&l->out, take_out, l);
    if (fds[ERR].revents)
        xp_output_read(&l->err, take_err, l);
    if (fds[LISTENER].revents)
        accept_shim(l);
    if (fds[SIGNALS].revents)
        take_signals(l);
}

static xp_status supervise(launcher *l) {
    const int n = l->args->n_ranks;
    struct pollfd *fds = calloc((size_t)n + 4, sizeof *fds);
    if (!fds)
        return xp_error(XP_ENOMEM, "no memory for %d ranks", n);
    while (go_on(l))
        wait_for_events(l, fds);
    free(fds);
    return XP_OK;
}

static void judge(launcher *l) {
    xp_launch_result *result = l->result;
    if (result->ended_by != 0)
        return;
    if (result->stopped_now) {
        result->code = 1;
        return;
    }
    char text[sizeof result->text];
    const int code = xp_launch_find_cause(l->outcomes, l->args->n_ranks, text, sizeof text);
    if (code != 0 && (result->code == 0 || l->failed_s > 0)) {
        result->code = code;
        snprintf(result->text, sizeof result->text, "%s", text);
    }
    bool knows = false; /* a rank has said why */
    for (int r = 0; r < l->args->n_ranks; r++)
        knows |= l->outcomes[r].end.reported != 0;
    if (result->code != 0 && !knows)
        xp_kept_show(&l->kept, stderr);
}

static xp_status run(launcher *l) {
    xp_mpirun mpirun;
    XP_TRY(xp_mpirun_find(&mpirun));
    XP_TRY(xp_launch_listen(&l->listener, l->name));
    XP_TRY(xp_launcher_open_signals(l));
    xp_sweeper_open(&l->sweeper);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    l->began_s = xp_time_s();
    XP_TRY(xp_launcher_start_mpirun(l, &mpirun));
    xp_sweeper_start(&l->sweeper, l->mpirun);
    XP_TRY(supervise(l));
    judge(l);
    return XP_OK;
}

static void close_all(launcher *l) {
    for (int r = 0; r < l->args->n_ranks; r++)
        if (l->ranks[r].socket >= 0)
            close(l->ranks[r].socket); /* its shim ends the rank */
    if (l->listener >= 0)
        close(l->listener);
    if (l->out.fd >= 0)
        close(l->out.fd);
    if (l->err.fd >= 0)
        close(l->err.fd);
    xp_kill_children(l->sweeper.sweeper, KILLED_S);
    xp_sweeper_close(&l->sweeper);
    xp_launcher_close_signals(l);
}

xp_status xp_launch_run(const xp_launch_args *args, xp_launch_result *result) {
    launcher *l = calloc(1, sizeof *l);
    const size_t n = (size_t)args->n_ranks;
    memset(result, 0, sizeof *result);
    launched_rank *ranks = calloc(n, sizeof *ranks);
    xp_rank_outcome *outcomes = calloc(n, sizeof *outcomes);
    xp_status status = XP_ENOMEM;
    if (l && ranks && outcomes) {
        *l = (launcher){.args = args,
                        .result = result,
                        .sweeper = {.line = -1},
                        .listener = -1,
                        .signals = -1,
                        .out = {.fd = -1},
                        .err = {.fd = -1},
                        .ranks = ranks,
                        .outcomes = outcomes};
        for (size_t r = 0; r < n; r++) {
            ranks[r].socket = -1;
            outcomes[r].end.rank = (int32_t)r;
        }
        status = run(l);
        close_all(l);
    } else {
        xp_error(status, "no memory for %d ranks", args->n_ranks);
    }
    free(outcomes);
    free(ranks);
    free(l);
    return status;
}
