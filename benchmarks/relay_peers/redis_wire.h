/* As much of Redis' protocol as a publisher and a subscriber need: connect, log in, parse what is pushed. */
#ifndef REDIS_WIRE_H
#define REDIS_WIRE_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline int connect_to(int port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static inline int redis_connect(int port, const char *password) {
    char command[256], answer[64];
    int fd = connect_to(port);
    int length = snprintf(command, sizeof command, "*2\r\n$4\r\nAUTH\r\n$%zu\r\n%s\r\n", strlen(password), password);
    if (write(fd, command, length) != length || read(fd, answer, sizeof answer) < 5 || memcmp(answer, "+OK", 3)) {
        fprintf(stderr, "Redis refused the password\n");
        exit(1);
    }
    return fd;
}

struct part {
    const char *at;
    long length; /* of a string, or the value of an integer */
};

/* One array of three (message, channel, data) from `at`. The bytes it takes, 0 when it isn't whole yet. */
static inline long pushed(const char *at, const char *end, struct part parts[3]) {
    const char *start = at, *line = memchr(at, '\n', end - at);
    if (!line) return 0;
    if (memcmp(at, "*3\r\n", 4)) {
        fprintf(stderr, "unexpected answer of Redis: %.40s\n", at);
        exit(1);
    }
    at = line + 1;
    for (int index = 0; index < 3; index++) {
        line = at < end ? memchr(at, '\n', end - at) : NULL;
        if (!line) return 0;
        parts[index].length = strtol(at + 1, NULL, 10);
        char kind = *at;
        at = line + 1;
        if (kind == '$') {
            parts[index].at = at;
            at += parts[index].length + 2;
            if (at > end) return 0;
        }
    }
    return at - start;
}

#endif
