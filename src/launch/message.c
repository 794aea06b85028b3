#include "launch/message.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define N_FDS 2

bool xp_launch_send(int socket, const xp_launch_message *message, const int *fds) {
    struct iovec part = {.iov_base = (void *)(uintptr_t)message, .iov_len = sizeof *message};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(N_FDS * sizeof(int))];
    if (fds) {
        memset(control, 0, sizeof control);
        header.msg_control = control;
        header.msg_controllen = sizeof control;
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(N_FDS * sizeof(int));
        memcpy(CMSG_DATA(c), fds, N_FDS * sizeof(int));
    }
    ssize_t n;
    do
        n = sendmsg(socket, &header, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof *message;
}

bool xp_launch_receive(int socket, xp_launch_message *message, int *fds) {
    struct iovec part = {.iov_base = message, .iov_len = sizeof *message};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(N_FDS * sizeof(int))];
    struct msghdr header = {.msg_iov = &part,
                            .msg_iovlen = 1,
                            .msg_control = fds ? control : NULL,
                            .msg_controllen = fds ? sizeof control : 0};
    ssize_t n;
    do
        n = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof *message)
        return false;
    message->end.text[XP_LAUNCH_TEXT - 1] = '\0';
    if (!fds)
        return true;
    fds[0] = fds[1] = -1;
    struct cmsghdr *c = CMSG_FIRSTHDR(&header);
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
        c->cmsg_len == CMSG_LEN(N_FDS * sizeof(int)))
        memcpy(fds, CMSG_DATA(c), N_FDS * sizeof(int));
    return true;
}

/* Abstract: the first byte of the path is NUL. */
static socklen_t address_of(const char *name, struct sockaddr_un *address) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    size_t n = strlen(name);
    if (n > sizeof address->sun_path - 1)
        n = sizeof address->sun_path - 1;
    memcpy(address->sun_path + 1, name, n);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n);
}

xp_status xp_launch_listen(int *fd, char name[64]) {
    uint64_t random = 0;
    if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
        return xp_error(XP_EINTERNAL, "no random number for the launcher's socket: %s",
                        strerror(errno));
    snprintf(name, 64, "expar-launch-%d-%016llx", (int)getpid(), (unsigned long long)random);
    struct sockaddr_un address;
    const socklen_t n = address_of(name, &address);
    const int made = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (made < 0 || bind(made, (struct sockaddr *)&address, n) != 0 || listen(made, 4096) != 0) {
        xp_status status =
            xp_error(XP_EIO, "cannot make the launcher's socket: %s", strerror(errno));
        if (made >= 0)
            close(made);
        return status;
    }
    *fd = made;
    return XP_OK;
}

int xp_launch_connect(const char *name) {
    struct sockaddr_un address;
    const socklen_t n = address_of(name, &address);
    const int made = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (made >= 0 && connect(made, (struct sockaddr *)&address, n) != 0) {
        close(made);
        return -1;
    }
    return made;
}

int xp_launch_accept(int socket) {
    struct ucred peer;
    socklen_t n = sizeof peer;
    const int made = accept4(socket, NULL, NULL, SOCK_CLOEXEC);
    if (made < 0)
        return -1;
    if (getsockopt(made, SOL_SOCKET, SO_PEERCRED, &peer, &n) == 0 && peer.uid == geteuid())
        return made;
    close(made);
    return -1;
}
