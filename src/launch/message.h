/**
 * What the launcher and the shims of its ranks tell each other over a Unix socket
 * (SOCK_SEQPACKET, one message a packet). The socket's name is abstract: no file is left behind
 * whoever is killed, and a closed socket tells either side that the other is gone.
 */
#ifndef XP_LAUNCH_MESSAGE_H
#define XP_LAUNCH_MESSAGE_H

#include <stdbool.h>
#include <stdint.h>
#include "expar/status.h"

/** Set for mpirun by the launcher: the socket's name. `expar train` with it becomes a shim. */
#define XP_LAUNCH_SOCKET "EXPAR_LAUNCH_SOCKET"
/** Set for the rank by its shim: the file descriptor for reports. */
#define XP_LAUNCH_REPORT "EXPAR_LAUNCH_REPORT"
/** A folder of this launch on this node, removed when it ends; set where all ranks are on one node.
 */
#define XP_LAUNCH_FOLDER "EXPAR_LAUNCH_FOLDER"

#define XP_LAUNCH_TEXT 1024

/** How a rank has ended. */
typedef struct xp_rank_end {
    int32_t rank;
    int32_t code;       /* exit code */
    int32_t signal;     /* it was killed by this signal; 0: it exited */
    int32_t reported;   /* the fields below are filled in */
    int32_t secondhand; /* the failure of another rank that this one heard of */
    char text[XP_LAUNCH_TEXT];
} xp_rank_end;

typedef enum xp_launch_kind {
    XP_LAUNCH_HELLO = 1, /* shim: here is `end.rank`; the launcher answers with START */
    XP_LAUNCH_START,     /* launcher: with its stdout and stderr, which the rank gets */
    XP_LAUNCH_BEGUN,     /* rank, shim: signals are taken from now on */
    XP_LAUNCH_END,       /* rank, shim: `end` */
    XP_LAUNCH_SIGNAL,    /* launcher: send `value` to the rank */
    XP_LAUNCH_KILL,      /* launcher: SIGKILL to the rank */
    XP_LAUNCH_LEAVE      /* launcher: exit */
} xp_launch_kind;

typedef struct xp_launch_message {
    int32_t kind;
    int32_t value;
    int32_t pid; /* HELLO: of the shim */
    xp_rank_end end;
} xp_launch_message;

/** @param fds  [2] file descriptors to pass on, or NULL. @return false: the other side is gone */
bool xp_launch_send(int socket, const xp_launch_message *message, const int *fds);
/** Waits. @param[out] fds  [2] -1 where none came; may be NULL. @return false: as above */
bool xp_launch_receive(int socket, xp_launch_message *message, int *fds);

/** Listen on a new abstract name, which is written to `name`. */
XP_NODISCARD xp_status xp_launch_listen(int *socket, char name[64]);
/** @return the connected socket, or -1: the launcher is not on this node */
int xp_launch_connect(const char *name);
/** The next connection of a process of this user; -1: none, or not of this user. */
int xp_launch_accept(int socket);

#endif
