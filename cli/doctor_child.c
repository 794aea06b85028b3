#include "doctor_child.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "core/file.h"
#include "device/plugin.h"

#define TIMED_OUT 124 /* exit code of timeout */
#define LAUNCH_S  30  /* mpirun, until all ranks have answered */
#define GIVE_UP_S 4   /* after these: with SIGTERM and SIGKILL behind it */
#define GPUS_S    60  /* what runs on GPUs; a few seconds where they work */

static const char *const words[] = {[FOUND] = "yes", [MISSING] = "no", [BROKEN] = "NO"};

void doctor_child_tell(doctor_finding state, const char *name, const char *text) {
    printf("%-3s %s: %s\n", words[state], name, text);
    fflush(stdout);
}

/* "yes NAME: TEXT". @return it is no such line */
static bool read_finding(const char *line, doctor_child_line *found) {
    const char *name = line + strcspn(line, " "), *end = strstr(line, ": ");
    const size_t n_word = (size_t)(name - line);
    name += strspn(name, " ");
    if (!end || end <= name || (size_t)(end - name) >= sizeof found->name)
        return false;
    for (int i = FOUND; i <= BROKEN; i++)
        if (strlen(words[i]) == n_word && strncmp(line, words[i], n_word) == 0) {
            found->state = (doctor_finding)i;
            snprintf(found->name, sizeof found->name, "%.*s", (int)(end - name), name);
            snprintf(found->text, sizeof found->text, "%s", end + 2);
            return true;
        }
    return false;
}

/* The output so far that is no whole line yet. */
typedef struct reader {
    doctor_child *child;
    bool has_error;
    size_t n;
    char line[512];
} reader;

static void read_line(reader *r) {
    doctor_child *child = r->child;
    r->line[r->n] = '\0';
    r->n = 0;
    if (child->n_lines < DOCTOR_CHILD_LINES &&
        read_finding(r->line, &child->lines[child->n_lines])) {
        child->n_lines++;
        return;
    }
    if (!r->has_error && r->line[strspn(r->line, " -")])
        snprintf(child->last, sizeof child->last, "%s", r->line);
    r->has_error = r->has_error || strncmp(r->line, "error:", 6) == 0;
}

/* @return false: the output has not ended by then. A process that the driver holds does not end when it is killed. */
static bool read_output(int fd, double until, reader *r) {
    char bytes[512];
    for (;;) {
        struct pollfd waits = {.fd = fd, .events = POLLIN};
        const double left = until - xp_time_s();
        const int n_ready = left > 0 ? poll(&waits, 1, (int)(left * 1e3) + 1) : 0;
        if (n_ready < 0)
            continue; /* a signal */
        if (n_ready == 0)
            return false;
        const ssize_t n = read(fd, bytes, sizeof bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        for (ssize_t i = 0; i < n; i++) {
            if (bytes[i] == '\n')
                read_line(r);
            else if (r->n + 1 < sizeof r->line)
                r->line[r->n++] = bytes[i];
        }
    }
    if (r->n > 0)
        read_line(r);
    return true;
}

/* Its output is read, nothing is printed. */
static void run_child(const char *command, int seconds, doctor_child *child) {
    char limited[4096];
    reader r = {.child = child};
    int code = TIMED_OUT;
    memset(child, 0, sizeof *child);
    snprintf(limited, sizeof limited, "timeout -k 2 %d %s 2>&1 < /dev/null", seconds, command);
    fflush(stdout);
    FILE *pipe = popen(limited, "r");
    if (!pipe) {
        snprintf(child->last, sizeof child->last, "cannot start a process: %s", strerror(errno));
        return;
    }
    if (read_output(fileno(pipe), xp_time_s() + seconds + GIVE_UP_S, &r)) {
        const int how = pclose(pipe);
        code = how == -1 ? -1 : WIFSIGNALED(how) ? 128 + WTERMSIG(how) : WEXITSTATUS(how);
    } /* else pclose() would wait for it */
    child->ended_well = code == 0;
    if (code == TIMED_OUT || code == 128 + SIGKILL) /* where SIGTERM did not end it */
        snprintf(child->last, sizeof child->last, "no answer within %d s", seconds);
    else if (code > 128 && !r.has_error)
        snprintf(child->last, sizeof child->last, "the test was ended by signal %d", code - 128);
    else if (!child->last[0] && !child->ended_well)
        snprintf(child->last, sizeof child->last, "no answer");
}

const doctor_child_line *doctor_child_find(const doctor_child *child, const char *name) {
    for (int i = 0; i < child->n_lines; i++)
        if (strcmp(child->lines[i].name, name) == 0)
            return &child->lines[i];
    return NULL;
}

/* ---- the doctor's ------------------------------------------------------------------------ */

static bool own_path(char *path, size_t n_path) {
    const ssize_t n = readlink("/proc/self/exe", path, n_path - 1);
    path[n > 0 ? n : 0] = '\0';
    return n > 0;
}

static doctor_mpirun try_mpirun(const doctor *d, const char *exe, doctor_tries *tries) {
    char command[2400], why[512];
    if (d->skip_mpirun)
        return NOT_WANTED;
    if (!xp_plugin_open("libexpar_mpi.so", why, sizeof why))
        return NO_PROVIDER;
    if (system("command -v mpirun > /dev/null 2>&1") != 0)
        return NO_MPIRUN;
    tries->n_ranks = d->n_ranks > 0 ? (int)d->n_ranks : d->n_gpus > 2 ? d->n_gpus : 2;
    tries->with_gpus = d->n_gpus > 1 && tries->n_ranks <= d->n_gpus && !d->skip_gpus;
    snprintf(command, sizeof command, "mpirun %s --oversubscribe -n %d '%s' doctor%s",
             geteuid() == 0 ? "--allow-run-as-root" : "", tries->n_ranks, exe,
             tries->with_gpus ? "" : " --no-gpus");
    run_child(command, tries->with_gpus ? GPUS_S : LAUNCH_S, &tries->ranks);
    return TRIED;
}

void doctor_run_tries(const doctor *d, doctor_tries *tries) {
    char exe[2048], command[2200];
    memset(tries, 0, sizeof *tries);
    if (!own_path(exe, sizeof exe))
        return;
    tries->on_gpus = d->n_gpus > 0 && !d->skip_gpus;
    snprintf(command, sizeof command, "'%s' doctor --on-gpus", exe);
    if (tries->on_gpus)
        run_child(command, GPUS_S, &tries->gpus);
    tries->mpirun = try_mpirun(d, exe, tries);
}
