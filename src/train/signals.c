#include "train/signals.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include "core/error.h"
#include "core/file.h"

#define SECOND_SIGNAL_S 1.0 /* a launcher may pass one key press on twice */
#define ABORTED_S       1.0 /* for the news to reach the other ranks, and for the error of the run */

/* What stops a run: the keyboard, a job's end, a lost terminal, Slurm's --signal. */
static const struct {
    int number;
    const char *name;
    bool may_be_ignored; /* nohup and shells set these aside on purpose */
} stop_signals[] = {{SIGINT, "SIGINT", false},
                    {SIGTERM, "SIGTERM", false},
                    {SIGHUP, "SIGHUP", true},
                    {SIGUSR1, "SIGUSR1", true}};

#define N_STOP_SIGNALS (sizeof stop_signals / sizeof stop_signals[0])

struct xp_signals {
    xp_signals_args args;
    pthread_t thread;
    atomic_bool quit;
    sigset_t set;
};

static const char *signal_name(int number) {
    for (size_t i = 0; i < N_STOP_SIGNALS; i++)
        if (stop_signals[i].number == number)
            return stop_signals[i].name;
    return "a signal";
}

/* The run's threads may wait for a rank or a GPU that does not come back. */
static void stop_now(const xp_signals *s, int number) {
    char reason[64];
    snprintf(reason, sizeof reason, "%s twice: the run is stopped at once", signal_name(number));
    xp_log_info(s->args.log, "%s", reason);
    if (s->args.comm) {
        xp_comm_abort(s->args.comm, reason);
        const struct timespec wait = {.tv_sec = (time_t)ABORTED_S};
        nanosleep(&wait, NULL);
    }
    _exit(1);
}

static void *take_signals(void *context) {
    xp_signals *s = context;
    double first = 0;
    for (;;) {
        int number = 0;
        if (sigwait(&s->set, &number) != 0)
            continue;
        if (number == SIGUSR2) {
            if (atomic_load(&s->quit))
                return NULL;
            continue;
        }
        double now = xp_time_s();
        if (first > 0 && !s->args.patient && now - first > SECOND_SIGNAL_S)
            stop_now(s, number);
        if (first > 0)
            continue;
        first = now;
        xp_train_request_stop(s->args.shared);
        xp_log_info(s->args.log, "%s: this step is finished%s first; once more stops at once",
                    signal_name(number),
                    s->args.saves ? " and saved" : " (checkpoint.enable is off: nothing is saved)");
    }
}

/*
 * Libraries may have started threads before main(), with these signals open (OpenBLAS does). Such a
 * thread closes them for itself and passes the signal on, until the thread that waits gets it.
 */
static void pass_on(int number, siginfo_t *info, void *context) {
    (void)info;
    ucontext_t *interrupted = context;
    sigaddset(&interrupted->uc_sigmask, number);
    kill(getpid(), number);
}

static xp_status take_over(int number, bool may_be_ignored, sigset_t *set) {
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = pass_on;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    sigfillset(&action.sa_mask);
    if (sigaction(number, NULL, &before) != 0)
        return xp_error(XP_EINTERNAL, "cannot read the handler of signal %d", number);
    if (may_be_ignored && !(before.sa_flags & SA_SIGINFO) && before.sa_handler == SIG_IGN)
        return XP_OK;
    if (sigaction(number, &action, NULL) != 0)
        return xp_error(XP_EINTERNAL, "cannot install the handler of signal %d", number);
    sigaddset(set, number);
    return XP_OK;
}

static xp_status start(xp_signals *s) {
    sigemptyset(&s->set);
    for (size_t i = 0; i < N_STOP_SIGNALS; i++)
        XP_TRY(take_over(stop_signals[i].number, stop_signals[i].may_be_ignored, &s->set));
    sigaddset(&s->set, SIGUSR2);
    atomic_init(&s->quit, false);
    if (pthread_sigmask(SIG_BLOCK, &s->set, NULL) != 0 ||
        pthread_create(&s->thread, NULL, take_signals, s) != 0)
        return xp_error(XP_ENOMEM, "cannot start the thread that takes signals");
    return XP_OK;
}

xp_status xp_signals_start(const xp_signals_args *args, xp_signals **signals) {
    xp_signals *s = calloc(1, sizeof *s);
    if (!s)
        return xp_error(XP_ENOMEM, "no memory for the thread that takes signals");
    s->args = *args;
    xp_status status = start(s);
    if (status != XP_OK) {
        free(s);
        return status;
    }
    *signals = s;
    return XP_OK;
}

void xp_signals_stop(xp_signals *signals) {
    if (!signals)
        return;
    atomic_store(&signals->quit, true);
    pthread_kill(signals->thread, SIGUSR2);
    pthread_join(signals->thread, NULL);
    free(signals);
}
