#include "report/serve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "core/file.h"
#include "report/data.h"
#include "report/page.h"

#define MAX_REQUEST 8192
#define WAIT_MS     200 /* between looks at *stop */
#define REQUEST_S   5.0 /* for a request to arrive, and for its answer to be taken */
#define REFRESH_S   0.5 /* files are not looked at more often */

typedef struct server {
    xp_report_run *const *runs;
    int n_runs;
    int64_t version; /* of what the runs hold */
    double refreshed_s;
    const volatile sig_atomic_t *stop;
} server;

/* ---- sockets ----------------------------------------------------------------------------- */

static xp_status listen_on(int port, int *fd, int *bound) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t n = sizeof address;
    const int yes = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    *fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*fd < 0)
        return xp_error(XP_EIO, "cannot open a socket: %s", strerror(errno));
    setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(*fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(*fd, 16) != 0 ||
        getsockname(*fd, (struct sockaddr *)&address, &n) != 0) {
        const int error = errno;
        close(*fd);
        if (error == EADDRINUSE)
            return xp_error(XP_EIO,
                            "port %d of 127.0.0.1 is taken: give another one (--serve PORT, "
                            "--serve 0 for a free one)",
                            port);
        return xp_error(XP_EIO, "cannot listen on port %d of 127.0.0.1: %s", port, strerror(error));
    }
    *bound = ntohs(address.sin_port);
    return XP_OK;
}

/* False: stopped, or the other side is too slow. */
static bool wait_for(const server *s, int fd, short events, double until_s) {
    struct pollfd p = {.fd = fd, .events = events};
    while (!*s->stop && xp_time_s() < until_s)
        if (poll(&p, 1, WAIT_MS) > 0)
            return true;
    return false;
}

static bool send_all(const server *s, int fd, const char *data, size_t n) {
    const double until_s = xp_time_s() + REQUEST_S;
    while (n > 0) {
        const ssize_t sent = send(fd, data, n, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        if (sent < 0 && !wait_for(s, fd, POLLOUT, until_s))
            return false;
        if (sent > 0) {
            data += sent;
            n -= (size_t)sent;
        }
    }
    return true;
}

/* ---- requests ---------------------------------------------------------------------------- */

/* Up to the empty line, or to what is no text. @return bytes, 0: none, too many, or too slow */
static size_t receive(const server *s, int fd, char request[MAX_REQUEST + 1]) {
    const double until_s = xp_time_s() + REQUEST_S;
    size_t n = 0;
    while (n < MAX_REQUEST && wait_for(s, fd, POLLIN, until_s)) {
        const ssize_t got = recv(fd, request + n, MAX_REQUEST - n, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            return 0;
        if (got < 0)
            continue;
        n += (size_t)got;
        request[n] = '\0';
        if (memchr(request, '\0', n) || strstr(request, "\r\n\r\n") || strstr(request, "\n\n"))
            return n;
    }
    return n == MAX_REQUEST ? n : 0;
}

static void answer(const server *s, int fd, const char *status, const char *type,
                   const xp_text *body) {
    char head[512];
    const int n = snprintf(head, sizeof head,
                           "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
                           "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
                           "Cross-Origin-Resource-Policy: same-origin\r\nConnection: close\r\n\r\n",
                           status, type, body ? body->length : 0);
    if (send_all(s, fd, head, (size_t)n) && body)
        send_all(s, fd, body->data, body->length);
}

static void answer_error(const server *s, int fd, const char *status) {
    xp_text body = {0};
    xp_text_printf(&body, "%s\n", status);
    if (!body.failed)
        answer(s, fd, status, "text/plain", &body);
    xp_text_free(&body);
}

/* What the files have gained. A file that cannot be read right now is asked for again. */
static void refresh(server *s) {
    bool any = false;
    if (xp_time_s() - s->refreshed_s < REFRESH_S)
        return;
    for (int i = 0; i < s->n_runs; i++) {
        bool changed = false;
        if (xp_report_run_refresh(s->runs[i], &changed) == XP_OK)
            any = any || changed;
    }
    s->version += any;
    s->refreshed_s = xp_time_s();
}

static void send_report(server *s, int fd, bool page) {
    xp_text data = {0}, html = {0};
    xp_status status = xp_report_data(s->runs, s->n_runs, s->version, &data);
    if (status == XP_OK && page)
        status = xp_report_page(&data, true, &html);
    if (status != XP_OK)
        answer_error(s, fd, "500 Internal Server Error");
    else
        answer(s, fd, "200 OK", page ? "text/html; charset=utf-8" : "application/json",
               page ? &html : &data);
    xp_text_free(&data);
    xp_text_free(&html);
}

/* A page of another site that calls this address by a name of its own gets nothing. */
static bool is_own_host(const char *request) {
    const char *host = strcasestr(request, "\nHost:");
    if (!host)
        return false;
    host += strlen("\nHost:");
    host += strspn(host, " \t");
    const size_t n = strcspn(host, ":\r\n \t");
    return (n == 9 && memcmp(host, "127.0.0.1", 9) == 0) ||
           (n == 9 && strncasecmp(host, "localhost", 9) == 0);
}

static void serve_one(server *s, int fd) {
    char request[MAX_REQUEST + 1], target[256];
    long long version = -1;
    const size_t n = receive(s, fd, request);
    if (n == 0)
        return;
    if (n == MAX_REQUEST) {
        answer_error(s, fd, "431 Request Header Fields Too Large");
        return;
    }
    if (strncmp(request, "GET ", 4) != 0) {
        answer_error(s, fd, "405 Method Not Allowed");
        return;
    }
    if (sscanf(request, "GET %255s HTTP/1.", target) != 1 || !is_own_host(request)) {
        answer_error(s, fd, "400 Bad Request");
        return;
    }
    const bool page = strcmp(target, "/") == 0;
    const bool data =
        strcmp(target, "/data") == 0 || sscanf(target, "/data?version=%lld", &version) == 1;
    if (!page && !data) {
        answer_error(s, fd, "404 Not Found");
        return;
    }
    refresh(s);
    if (data && version == s->version)
        answer(s, fd, "204 No Content", "application/json", NULL);
    else
        send_report(s, fd, page);
}

xp_status xp_report_serve(xp_report_run *const *runs, int n_runs, int port,
                          const volatile sig_atomic_t *stop, void (*ready)(const char *address)) {
    server s = {.runs = runs, .n_runs = n_runs, .version = 1, .stop = stop};
    char address[64];
    int fd, bound = 0;
    XP_TRY(listen_on(port, &fd, &bound));
    snprintf(address, sizeof address, "http://127.0.0.1:%d/", bound);
    if (ready)
        ready(address);
    while (!*stop) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, WAIT_MS) <= 0)
            continue;
        const int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (client < 0)
            continue;
        serve_one(&s, client);
        close(client);
    }
    close(fd);
    return XP_OK;
}
