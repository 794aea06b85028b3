#include "sockets.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int write_all(int fd, const char *data, size_t n_bytes) {
    while (n_bytes > 0) {
        const ssize_t n = send(fd, data, n_bytes, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        data += n;
        n_bytes -= (size_t)n;
    }
    return 0;
}

static int read_all(int fd, char *data, size_t n_bytes) {
    while (n_bytes > 0) {
        const ssize_t n = recv(fd, data, n_bytes, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        data += n;
        n_bytes -= (size_t)n;
    }
    return 0;
}

/* Pair by pair in one order that all ranks keep, so that nobody waits in a circle. */
static int all_gather(void *context, const void *mine, void *all, size_t n_bytes) {
    sockets *s = context;
    s->n_calls++;
    memmove((char *)all + (size_t)s->rank * n_bytes, mine, n_bytes);
    const char *own = (const char *)all + (size_t)s->rank * n_bytes;
    for (int peer = 0; peer < s->n_ranks; peer++) {
        char *theirs = (char *)all + (size_t)peer * n_bytes;
        if (peer == s->rank)
            continue;
        const bool first = s->rank < peer;
        if ((first && write_all(s->to[peer], own, n_bytes) != 0) ||
            read_all(s->to[peer], theirs, n_bytes) != 0 ||
            (!first && write_all(s->to[peer], own, n_bytes) != 0))
            return -1;
    }
    return 0;
}

xp_comm_callbacks sockets_callbacks(sockets *s, double timeout_s) {
    return (xp_comm_callbacks){.rank = s->rank,
                               .size = s->n_ranks,
                               .context = s,
                               .all_gather = all_gather,
                               .timeout_s = timeout_s};
}

static void run_process(const sockets_run *run, sockets *s) {
    if (run->raw) {
        run->raw(s, run->context);
        _exit(0);
    }
    const xp_comm_callbacks callbacks = sockets_callbacks(s, run->timeout_s);
    xp_comm *comm = NULL;
    if (xp_comm_from_callbacks(&callbacks, &comm) != XP_OK) {
        fprintf(stderr, "rank %d: %s\n", s->rank, xp_last_error());
        _exit(1);
    }
    run->body(comm, run->context, s->rank);
    xp_comm_destroy(comm);
    _exit(0);
}

void sockets_start(const sockets_run *run, pid_t *pids) {
    int to[SOCKETS_MAX_RANKS][SOCKETS_MAX_RANKS];
    const int n = run->n_ranks;
    for (int a = 0; a < n; a++) {
        for (int b = a + 1; b < n; b++) {
            int pair[2];
            if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
                abort();
            to[a][b] = pair[0];
            to[b][a] = pair[1];
        }
    }
    fflush(NULL);
    for (int r = 0; r < n; r++) {
        pids[r] = fork();
        if (pids[r] < 0)
            abort();
        if (pids[r] != 0)
            continue;
        sockets s = {.rank = r, .n_ranks = n};
        for (int a = 0; a < n; a++)
            for (int b = 0; b < n; b++)
                if (a == r && a != b)
                    s.to[b] = to[a][b];
                else if (a != b)
                    close(to[a][b]); /* a peer that is gone is an end of file */
        run_process(run, &s);
    }
    for (int a = 0; a < n; a++)
        for (int b = 0; b < n; b++)
            if (a != b)
                close(to[a][b]);
}

int sockets_wait(pid_t pid) {
    int status = 0;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            abort();
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int sockets_run_all(const sockets_run *run) {
    pid_t pids[SOCKETS_MAX_RANKS];
    int n_wrong = 0;
    sockets_start(run, pids);
    for (int r = 0; r < run->n_ranks; r++)
        n_wrong += sockets_wait(pids[r]) != 0;
    return n_wrong;
}

void *shared_memory(size_t n_bytes) {
    void *data = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        abort();
    return data;
}

void shared_memory_free(void *data, size_t n_bytes) {
    munmap(data, n_bytes);
}
