#include "comm/rendezvous.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "core/file.h"
#include "core/process.h"
#include "core/text.h"

/* Ranks that see a failure written down leave within this time. */
#define OTHERS_S 2.0
#define OUTPUT_S 0.2
/* Files of the folder beside the arrival files: the failure that a waiting rank has found; why a
 * rank does not come. */
#define FAILED   "failed"
#define ABSENTEE "absentee"

static const char *first_of(const char *const *names, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const char *value = getenv(names[i]);
        if (value && value[0])
            return value;
    }
    return NULL;
}

static int number_of(const char *const *names, size_t n, int otherwise) {
    const char *value = first_of(names, n);
    return value ? atoi(value) : otherwise;
}

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* Open MPI's mpirun, PMIx launchers, srun. */
static void ask_launcher(xp_rendezvous *m) {
    const char *const ranks[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"};
    const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    m->rank = number_of(ranks, COUNT(ranks), 0);
    m->size = number_of(sizes, COUNT(sizes), 1);
}

static uint64_t add_hash(uint64_t hash, const char *text) {
    for (; text && *text; text++)
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3U;
    return (hash ^ 0xff) * 0x100000001b3U;
}

/* The same on all ranks of one start and on no others. */
static uint64_t job_key(void) {
    const char *const names[] = {
        "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_hnp_uri",
        "SLURM_JOB_ID",   "SLURM_STEP_ID",           "SLURM_RESTART_COUNT",
        "PMI_JOBID"};
    uint64_t key = 0xcbf29ce484222325U;
    for (size_t i = 0; i < COUNT(names); i++)
        key = add_hash(key, getenv(names[i]));
    return key;
}

static void path_of(const char *folder, const char *name, char path[1100]) {
    snprintf(path, 1100, "%s/%s", folder, name);
}

static void arrival_file_of(const xp_rendezvous *m, int rank, char path[1100]) {
    char name[32];
    snprintf(name, sizeof name, "%d", rank);
    path_of(m->folder, name, path);
}

static xp_status locate(const char *folder, xp_rendezvous *m) {
    const char *const temporary[] = {"TMPDIR"};
    const char *fallback = first_of(temporary, 1);
    *m = (xp_rendezvous){0};
    ask_launcher(m);
    if (m->size < 2)
        return XP_OK;
    fallback = fallback ? fallback : "/tmp";
    gethostname(m->host, sizeof m->host - 1);
    const unsigned long long key = job_key();
    const int n = snprintf(m->folder, sizeof m->folder, "%s/.expar-ranks-%016llx",
                           folder ? folder : fallback, key);
    snprintf(m->fallback, sizeof m->fallback, "%s/.expar-ranks-%016llx", fallback, key);
    return n > 0 && (size_t)n < sizeof m->folder
               ? XP_OK
               : xp_error(XP_EINVAL, "the path of the rendezvous folder is too long: %s",
                          folder ? folder : fallback);
}

xp_status xp_rendezvous_enter(const char *folder, xp_rendezvous *m) {
    XP_TRY(locate(folder, m));
    if (m->size < 2)
        return XP_OK;
    XP_TRY(xp_folder_create(m->folder));
    char path[1100], text[128];
    arrival_file_of(m, m->rank, path);
    snprintf(text, sizeof text, "%d %s\n", (int)getpid(), m->host);
    return xp_file_write_atomic(path, text, strlen(text));
}

void xp_rendezvous_deadline(xp_rendezvous *m, double timeout_s) {
    m->timeout_s = timeout_s;
    m->deadline_s = xp_time_s() + timeout_s;
}

typedef enum arrival { ABSENT, PRESENT, STOPPED, DEAD } arrival;

/* Process numbers of other hosts say nothing here. */
static arrival look_for(const xp_rendezvous *m, int rank, int *pid) {
    char path[1100], host[64] = "", *text = NULL;
    size_t n = 0;
    arrival_file_of(m, rank, path);
    if (xp_file_read(path, 4096, &text, &n) != XP_OK) {
        xp_error_clear();
        return ABSENT;
    }
    *pid = 0;
    int n_read = sscanf(text, "%d %63s", pid, host);
    free(text);
    bool here = n_read == 2 && strcmp(host, m->host) == 0;
    if (here && kill(*pid, 0) != 0 && errno == ESRCH)
        return DEAD;
    return here && xp_process_is_stopped(*pid) ? STOPPED : PRESENT;
}

static void add_ranks(const xp_rendezvous *m, arrival what, xp_text *text) {
    int n = 0;
    for (int r = 0; r < m->size; r++) {
        int pid = 0;
        if (look_for(m, r, &pid) != what)
            continue;
        if (n++ < 16)
            xp_text_printf(text, "%s%d", n > 1 ? ", " : "", r);
    }
    if (n > 16)
        xp_text_printf(text, " and %d more", n - 16);
}

static const char *plural(const xp_text *ranks) {
    return strchr(ranks->data, ',') ? "s" : "";
}

/* What is wrong with the ranks in the worst state that there is. */
static xp_status report(const xp_rendezvous *m) {
    xp_text ranks = {0};
    xp_status status;
    add_ranks(m, DEAD, &ranks);
    if (ranks.data) {
        status = xp_error(XP_ECOMM,
                          "rank%s %s died in init, before all ranks were connected: killed or "
                          "crashed",
                          plural(&ranks), ranks.data);
        xp_text_free(&ranks);
        return status;
    }
    add_ranks(m, ABSENT, &ranks);
    if (ranks.data) {
        status = xp_error(XP_ECOMM,
                          "init: rank%s %s did not arrive within %g s (comm.init_timeout_seconds): "
                          "never started, "
                          "or cannot see %s, where ranks create their arrival files",
                          plural(&ranks), ranks.data, m->timeout_s, m->folder);
        xp_text_free(&ranks);
        return status;
    }
    add_ranks(m, STOPPED, &ranks);
    if (ranks.data)
        status = xp_error(XP_ECOMM,
                          "init: rank%s %s did not connect within %g s "
                          "(comm.init_timeout_seconds): the process is stopped",
                          plural(&ranks), ranks.data, m->timeout_s);
    else
        status = xp_error(XP_ECOMM,
                          "init: all %d ranks are there, but MPI did not connect them within %g s "
                          "(comm.init_timeout_seconds); look at the network settings of MPI "
                          "(mpirun --mca btl_base_verbose 30)",
                          m->size, m->timeout_s);
    xp_text_free(&ranks);
    return status;
}

static bool is_there(const char *path) {
    bool exists = false;
    if (xp_path_exists(path, &exists) != XP_OK)
        xp_error_clear();
    return exists;
}

/* A failure that another rank has written down: its text is ours. */
static xp_status check_file(const char *folder, const char *name) {
    char path[1100], *text = NULL;
    size_t n = 0;
    path_of(folder, name, path);
    if (!is_there(path))
        return XP_OK;
    if (xp_file_read(path, 4096, &text, &n) != XP_OK) {
        xp_error_clear();
        return XP_OK;
    }
    xp_status status = xp_error(XP_ECOMM, "%s", text);
    free(text);
    return status;
}

/* A rank that could not even start. One that did not know the folder has used the fallback. */
static xp_status check_absentee(const xp_rendezvous *m) {
    XP_TRY(check_file(m->folder, ABSENTEE));
    return check_file(m->fallback, ABSENTEE);
}

xp_status xp_rendezvous_check(xp_rendezvous *m) {
    if (m->size < 2)
        return xp_time_s() < m->deadline_s ? XP_OK
                                           : xp_error(XP_ECOMM,
                                                      "MPI_Init did not return within %g s "
                                                      "(comm.init_timeout_seconds)",
                                                      m->timeout_s);
    XP_TRY(check_file(m->folder, FAILED));
    XP_TRY(check_absentee(m));
    for (int r = 0; r < m->size; r++) {
        int pid = 0;
        if (r != m->rank && look_for(m, r, &pid) == DEAD)
            return report(m);
    }
    return xp_time_s() < m->deadline_s ? XP_OK : report(m);
}

/* @return true: this rank was the first to write */
static bool write_once(const xp_rendezvous *m, const char *what, const char *text) {
    char path[1100], aside[1100], name[48];
    snprintf(name, sizeof name, "%s.%d", what, m->rank);
    path_of(m->folder, what, path);
    path_of(m->folder, name, aside);
    if (xp_file_write_atomic(aside, text, strlen(text)) != XP_OK)
        return true;
    bool first = link(aside, path) == 0 || errno != EEXIST; /* whole or not there */
    unlink(aside);
    return first;
}

static bool has_left(const char *folder, int rank) {
    char path[1100], name[48];
    snprintf(name, sizeof name, "%d.left", rank);
    path_of(folder, name, path);
    return is_there(path);
}

static void remove_folder(const char *folder) {
    if (xp_folder_remove(folder) != XP_OK)
        xp_error_clear();
}

/* After a rank that could not start the folder stays until the last rank has looked into it: ranks
 * may start seconds apart. */
static void sign_out(const xp_rendezvous *m) {
    char path[1100], name[48];
    snprintf(name, sizeof name, "%d.left", m->rank);
    path_of(m->folder, name, path);
    if (xp_file_write_atomic(path, "", 0) != XP_OK)
        xp_error_clear();
    arrival_file_of(m, m->rank, path);
    unlink(path);
    bool all = true;
    for (int r = 0; r < m->size && all; r++)
        all = has_left(m->folder, r) || has_left(m->fallback, r);
    if (!all)
        return;
    remove_folder(m->folder);
    remove_folder(m->fallback);
}

/* Until nobody on this host is left whose arrival file is there. */
static void wait_for_exits(const xp_rendezvous *m) {
    double deadline = xp_time_s() + OTHERS_S;
    for (bool alone = false; !alone && xp_time_s() < deadline;) {
        alone = true;
        for (int r = 0; r < m->size && alone; r++) {
            int pid = 0;
            alone = r == m->rank || look_for(m, r, &pid) != PRESENT;
        }
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    }
    nanosleep(&(struct timespec){.tv_nsec = (long)(OUTPUT_S * 1e9)}, NULL);
}

static xp_status report_failure(xp_rendezvous *m, xp_status status) {
    char text[1024];
    snprintf(text, sizeof text, "%s", xp_last_error());
    if (check_absentee(m) != XP_OK) {
        snprintf(text, sizeof text, "%s", xp_last_error());
        write_once(m, ABSENTEE, text); /* for nodes that do not see the fallback */
        sign_out(m);
        return xp_error(status, "rank %d ends in init: %s", m->rank, text);
    }
    if (check_file(m->folder, FAILED) == XP_OK && write_once(m, FAILED, text)) {
        wait_for_exits(m);
        remove_folder(m->folder);
        return xp_error(status, "%s", text);
    }
    if (check_file(m->folder, FAILED) != XP_OK)
        snprintf(text, sizeof text, "%s", xp_last_error());
    return xp_error(status, "rank %d ends in init: %s", m->rank, text);
}

xp_status xp_rendezvous_leave(xp_rendezvous *m, xp_status status) {
    if (m->folder[0] == '\0')
        return status;
    if (status != XP_OK)
        return report_failure(m, status);
    char path[1100];
    arrival_file_of(m, m->rank, path);
    unlink(path);
    rmdir(m->folder); /* the last one takes it away */
    return status;
}

void xp_rendezvous_absent(const char *folder, const char *reason) {
    xp_rendezvous m;
    char text[1024];
    if (locate(folder, &m) == XP_OK && m.size > 1 && xp_folder_create(m.folder) == XP_OK) {
        snprintf(text, sizeof text, "rank %d gave up before the ranks were connected: %s", m.rank,
                 reason);
        write_once(&m, ABSENTEE, text);
        sign_out(&m);
    }
}
