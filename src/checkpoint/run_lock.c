#include "checkpoint/run_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "checkpoint/agree.h"
#include "core/file.h"

#define LOCK_FILE    ".lock"
#define MARKS_PREFIX ".expar-ranks-" /* of comm/mpi/rendezvous.c */
#define RECORD_BYTES 256
#define RECORD_WORDS "rank %d process %d host %63s since %31[^;]; run %" SCNx64
#define LOOKS        40 /* for a record that its holder is just writing */
#define LOOK_NS      25000000
#define MARKS_S      3600 /* marks of other hosts: nobody takes so long to connect */

struct xp_run_lock {
    int fd; /* -1: the file system has no locks */
    int rank;
    uint64_t run; /* the same on all ranks of a run and on no other */
    char *path;
};

/* Who holds a record. */
typedef struct holder {
    int rank, process;
    char host[64], since[32];
    uint64_t run;
} holder;

static xp_status lock_failed(const xp_run_lock *lock, const char *doing) {
    return xp_error(XP_EIO, "cannot %s %s: %s", doing, lock->path, strerror(errno));
}

/* ---- records ----------------------------------------------------------------------------- */

static void own_host(char host[64]) {
    if (gethostname(host, 64) != 0 || host[0] == '\0')
        snprintf(host, 64, "localhost");
    host[63] = '\0';
}

static xp_status write_record(const xp_run_lock *lock) {
    char record[RECORD_BYTES + 1], host[64], since[32];
    struct tm parts;
    time_t now = time(NULL);
    own_host(host);
    strftime(since, sizeof since, "%Y-%m-%d %H:%M:%S UTC", gmtime_r(&now, &parts));
    int n = snprintf(record, sizeof record, "rank %d process %d host %s since %s; run %016" PRIx64,
                     lock->rank, (int)getpid(), host, since, lock->run);
    memset(record + n, ' ', (size_t)(RECORD_BYTES - n));
    record[RECORD_BYTES - 1] = '\n';
    ssize_t written = pwrite(lock->fd, record, RECORD_BYTES, (off_t)lock->rank * RECORD_BYTES);
    if (written != RECORD_BYTES) {
        errno = written < 0 ? errno : ENOSPC;
        return lock_failed(lock, "write");
    }
    return fdatasync(lock->fd) == 0 ? XP_OK : lock_failed(lock, "sync");
}

static bool read_record(const xp_run_lock *lock, int rank, holder *who) {
    char record[RECORD_BYTES + 1];
    ssize_t n = pread(lock->fd, record, RECORD_BYTES, (off_t)rank * RECORD_BYTES);
    record[n > 0 ? n : 0] = '\0';
    memset(who, 0, sizeof *who);
    return sscanf(record, RECORD_WORDS, &who->rank, &who->process, who->host, who->since,
                  &who->run) == 5;
}

static bool is_dead_here(int process, const char *of_host) {
    char host[64];
    own_host(host);
    return strcmp(host, of_host) == 0 && kill(process, 0) != 0 && errno == ESRCH;
}

/* Another process holds the record of `rank`. Right after its start the record can still be of an
 * earlier run. */
static xp_status busy(const xp_run_lock *lock, const char *folder, int rank) {
    holder who;
    bool known = false;
    for (int i = 0; i < LOOKS && !known; i++) {
        known = read_record(lock, rank, &who) && !is_dead_here(who.process, who.host);
        if (!known)
            nanosleep(&(struct timespec){.tv_nsec = LOOK_NS}, NULL);
    }
    if (!known)
        return xp_error(XP_EBUSY,
                        "%s is in use by another run, which holds rank %d's lock in %s; wait for "
                        "it, end it, or choose another --job.dump_folder",
                        folder, rank, lock->path);
    char host[64];
    own_host(host);
    bool is_far = strcmp(host, who.host) != 0;
    return xp_error(XP_EBUSY,
                    "%s is in use by another run: its rank %d is process %d on %s, since %s; wait "
                    "for it, end it (kill %d there), or choose another --job.dump_folder%s%s%s",
                    folder, who.rank, who.process, who.host, who.since, who.process,
                    is_far ? "; if that machine is gone for good, remove " : "",
                    is_far ? lock->path : "", is_far ? " when the file server keeps its lock" : "");
}

/* ---- locks ------------------------------------------------------------------------------- */

/* Locks of the open file, not of the process: they hold between threads and libraries alike. */
static struct flock record_range(int rank, bool and_later) {
    return (struct flock){.l_type = F_WRLCK,
                          .l_whence = SEEK_SET,
                          .l_start = (off_t)rank * RECORD_BYTES,
                          .l_len = and_later ? 0 : RECORD_BYTES};
}

static bool no_locks_here(void) {
    return errno == ENOLCK || errno == ENOSYS || errno == EOPNOTSUPP || errno == EINVAL;
}

static xp_status lock_own_record(xp_run_lock *lock, const char *folder, xp_log *log) {
    struct flock range = record_range(lock->rank, false);
    if (fcntl(lock->fd, F_OFD_SETLK, &range) == 0)
        return write_record(lock);
    if (errno == EAGAIN || errno == EACCES)
        return busy(lock, folder, lock->rank);
    if (!no_locks_here())
        return lock_failed(lock, "lock");
    xp_log_warn(log,
                "%s cannot be locked (%s): nothing keeps a second run out of this folder; see that "
                "there is none",
                lock->path, strerror(errno));
    close(lock->fd);
    lock->fd = -1;
    return XP_OK;
}

/* The first rank from `first` on whose record another process holds; -1: none. */
static xp_status find_other(const xp_run_lock *lock, int first, bool and_later, int *rank) {
    struct flock range = record_range(first, and_later);
    *rank = -1;
    if (fcntl(lock->fd, F_OFD_GETLK, &range) != 0)
        return lock_failed(lock, "look at the locks of");
    if (range.l_type != F_UNLCK)
        *rank = (int)(range.l_start / RECORD_BYTES) > first ? (int)(range.l_start / RECORD_BYTES)
                                                            : first;
    return XP_OK;
}

/* Rank 0: its record is the run's; ranks of an earlier run may be alive without their rank 0. */
static xp_status take_first(xp_run_lock *lock, const char *folder, xp_log *log) {
    int other = -1;
    XP_TRY(lock_own_record(lock, folder, log));
    if (lock->fd < 0)
        return XP_OK;
    XP_TRY(find_other(lock, 1, true, &other));
    return other < 0 ? XP_OK : busy(lock, folder, other);
}

/* The others: rank 0 may have died meanwhile, and another run may have begun. A rank 0 that cannot
 * be seen writes to a file system of its own. */
static xp_status take_next(xp_run_lock *lock, const char *folder) {
    holder first;
    int other = -1;
    XP_TRY(lock_own_record(lock, folder, NULL));
    if (lock->fd < 0 || !read_record(lock, 0, &first) || first.run == lock->run)
        return XP_OK;
    XP_TRY(find_other(lock, 0, false, &other));
    return other < 0 ? XP_OK : busy(lock, folder, 0);
}

/* ---- marks of ranks ---------------------------------------------------------------------- */

/* Ends the listing at a mark whose process may be alive. */
static xp_status check_mark(void *context, const char *folder, const char *name) {
    (void)context;
    char *path = xp_path_join(folder, name), *text = NULL, host[64] = "", own[64];
    size_t n = 0;
    int process = 0;
    struct stat st;
    if (path == NULL)
        return xp_error(XP_ENOMEM, "no memory for a path");
    bool old = stat(path, &st) == 0 && time(NULL) - st.st_mtime > MARKS_S;
    xp_status status = xp_file_read(path, 4096, &text, &n);
    bool is_mark = status == XP_OK && sscanf(text, "%d %63s", &process, host) == 2;
    own_host(own);
    bool dead = is_mark && strcmp(own, host) == 0 ? is_dead_here(process, host) : old;
    free(text);
    free(path);
    return dead || strncmp(name, "failed", 6) == 0 ? XP_OK
                                                   : xp_error(XP_EBUSY, "%s is in use", folder);
}

static xp_status remove_dead_marks(void *context, const char *folder, const char *name) {
    (void)context;
    if (strncmp(name, MARKS_PREFIX, sizeof MARKS_PREFIX - 1) != 0)
        return XP_OK;
    char *path = xp_path_join(folder, name);
    if (path == NULL)
        return XP_OK;
    bool gone = xp_folder_each(path, check_mark, NULL) == XP_OK && xp_folder_remove(path) == XP_OK;
    if (!gone)
        xp_error_clear(); /* in use, or it stays where it is: it is in nobody's way */
    free(path);
    return XP_OK;
}

/* ---- */

static xp_status open_file(const char *folder, xp_run_lock *lock) {
    XP_TRY(xp_folder_create(folder));
    lock->path = xp_path_join(folder, LOCK_FILE);
    if (lock->path == NULL)
        return xp_error(XP_ENOMEM, "no memory to lock %s", folder);
    lock->fd = open(lock->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    return lock->fd >= 0 ? XP_OK : lock_failed(lock, "open");
}

static xp_status take(const char *folder, xp_comm *comm, xp_log *log, xp_run_lock *lock) {
    lock->rank = xp_agree_rank(comm);
    xp_status status = XP_OK;
    if (lock->rank == 0 && getrandom(&lock->run, sizeof lock->run, 0) != sizeof lock->run)
        status = xp_error(XP_EIO, "cannot get a random number: %s", strerror(errno));
    if (comm != NULL)
        XP_TRY(xp_comm_broadcast(comm, &lock->run, sizeof lock->run, 0, NULL));
    if (status == XP_OK && lock->rank == 0)
        status = open_file(folder, lock);
    if (status == XP_OK && lock->rank == 0)
        status = take_first(lock, folder, log);
    XP_TRY(xp_agree(comm, status));
    if (lock->rank == 0) {
        if (xp_folder_each(folder, remove_dead_marks, NULL) != XP_OK)
            xp_error_clear();
    } else {
        status = open_file(folder, lock);
        if (status == XP_OK)
            status = take_next(lock, folder);
    }
    return xp_agree(comm, status);
}

xp_status xp_run_lock_take(const char *folder, xp_comm *comm, xp_log *log, xp_run_lock **lock) {
    xp_run_lock *made = calloc(1, sizeof *made);
    xp_status status = made != NULL ? XP_OK : xp_error(XP_ENOMEM, "no memory to lock %s", folder);
    if (comm != NULL)
        xp_comm_set_phase(comm, "locking the run's folder");
    XP_TRY(xp_agree(comm, status));
    made->fd = -1;
    status = take(folder, comm, log, made);
    if (status != XP_OK) {
        xp_run_lock_release(made);
        return status;
    }
    *lock = made;
    return XP_OK;
}

void xp_run_lock_release(xp_run_lock *lock) {
    if (lock == NULL)
        return;
    if (lock->fd >= 0)
        close(lock->fd);
    free(lock->path);
    free(lock);
}
