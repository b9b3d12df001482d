/* The floor: the least a relay can do. One Redis subscription, one write() per delivery, no tokens, no limits.
 *
 *     floor REDIS_PORT FIRST_JOB JOBS [join | ceiling]      password in REDIS_PASSWORD; prints "ready PORT"
 *
 * join: the frames of one read from Redis go to each socket in one write. ceiling: no Redis; a text frame with a number
 * makes it write so many prebuilt frames to every socket. It knows one handshake key, the sample of RFC 6455. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>

#include "payload.h"
#include "redis_wire.h"

#define MOST_FDS 16384
#define READ_BYTES (256 * 1024)

struct job {
    int *sockets, count, room;
    char *frames;
    size_t length, size;
};

static struct job *jobs;
static int first_job, job_count, join, ceiling, poller;
static int job_of[MOST_FDS], is_open[MOST_FDS];
static int touched[1 << 16], touched_count;
static char buffer[READ_BYTES];

static void write_all(int fd, const char *data, size_t length) {
    while (length) {
        ssize_t written = write(fd, data, length);
        if (written < 0 && errno == EAGAIN) {
            struct pollfd one = {fd, POLLOUT, 0};
            poll(&one, 1, -1);
        } else if (written < 0) {
            return; /* its end is read in a moment */
        } else {
            data += written, length -= written;
        }
    }
}

static void broadcast(struct job *job, const char *data, size_t length) {
    for (int index = 0; index < job->count; index++) write_all(job->sockets[index], data, length);
}

static size_t frame_head(unsigned char *head, size_t length) {
    head[0] = 0x81;
    if (length < 126) return head[1] = length, 2;
    head[1] = 126, head[2] = length >> 8, head[3] = length & 255;
    return 4;
}

static void relay(struct part *channel, struct part *data) {
    struct job *job = &jobs[atoi(channel->at + 4) - first_job];
    unsigned char head[4];
    size_t head_length = frame_head(head, data->length), length = head_length + data->length;
    if (job->length + length > job->size) job->frames = realloc(job->frames, job->size = 2 * (job->length + length));
    if (!job->length) touched[touched_count++] = job - jobs;
    memcpy(job->frames + job->length, head, head_length);
    memcpy(job->frames + job->length + head_length, data->at, data->length);
    job->length += length;
    if (!join) {
        broadcast(job, job->frames, job->length);
        job->length = 0, touched_count = 0;
    }
}

static void redis_readable(int fd) {
    static size_t rest;
    ssize_t got = read(fd, buffer + rest, sizeof buffer - rest);
    if (got <= 0) exit(0);
    const char *at = buffer, *end = buffer + rest + got;
    struct part parts[3];
    for (long taken; at < end && (taken = pushed(at, end, parts)); at += taken)
        if (parts[0].length == 7 && !memcmp(parts[0].at, "message", 7)) relay(&parts[1], &parts[2]);
    for (int index = 0; index < touched_count; index++) {
        struct job *job = &jobs[touched[index]];
        broadcast(job, job->frames, job->length);
        job->length = 0;
    }
    touched_count = 0;
    rest = end - at;
    memmove(buffer, at, rest);
}

static void subscribe(int fd) {
    char name[64];
    dprintf(fd, "*%d\r\n$9\r\nSUBSCRIBE\r\n", job_count + 1);
    for (int index = 0; index < job_count; index++) {
        int length = snprintf(name, sizeof name, "ec:{%d}:live", first_job + index);
        dprintf(fd, "$%d\r\n%s\r\n", length, name);
    }
}

static void write_prebuilt(int count) {
    static unsigned number = 2;
    for (int done = 0; done < count; done++, number++) {
        char frame[4 + PAYLOAD_BYTES];
        size_t head_length = frame_head((unsigned char *)frame, PAYLOAD_BYTES);
        write_payload(frame + head_length, first_job, number, 0);
        for (int index = 0; index < job_count; index++) broadcast(&jobs[index], frame, head_length + PAYLOAD_BYTES);
    }
}

static void handshake(int fd, char *request) {
    char *path = strstr(request, "/training-jobs/");
    if (!path || !strstr(request, "dGhlIHNhbXBsZSBub25jZQ==")) die("handshake");
    struct job *job = &jobs[job_of[fd] = atoi(path + 15) - first_job];
    const char *answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    write_all(fd, answer, strlen(answer));
    if (job->count == job->room) job->sockets = realloc(job->sockets, sizeof(int) * (job->room = 2 * job->room + 4));
    job->sockets[job->count++] = fd;
    is_open[fd] = 1;
}

static void client_readable(int fd) {
    char request[4096] = "";
    ssize_t got = read(fd, request, sizeof request - 1);
    if (got <= 0) {
        struct job *job = &jobs[job_of[fd]];
        for (int index = 0; is_open[fd] && index < job->count; index++)
            if (job->sockets[index] == fd) job->sockets[index] = job->sockets[--job->count];
        is_open[fd] = 0;
        close(fd);
    } else if (!is_open[fd]) {
        handshake(fd, request);
    } else if (ceiling && (unsigned char)request[0] == 0x81) {
        for (int index = 0; index < (request[1] & 127); index++) request[6 + index] ^= request[2 + index % 4];
        write_prebuilt(atoi(request + 6));
    }
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    first_job = atoi(argv[2]), job_count = atoi(argv[3]);
    join = argc > 4 && !strcmp(argv[4], "join"), ceiling = argc > 4 && !strcmp(argv[4], "ceiling");
    jobs = calloc(job_count, sizeof *jobs);
    poller = epoll_create1(0);
    int listener = socket(AF_INET, SOCK_STREAM, 0), redis = -1, one = 1;
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof here;
    if (bind(listener, (struct sockaddr *)&here, sizeof here) < 0 || listen(listener, 2048) < 0) die("listen");
    getsockname(listener, (struct sockaddr *)&here, &size);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &(struct epoll_event){EPOLLIN, {.fd = listener}});
    if (!ceiling) {
        redis = redis_connect(atoi(argv[1]), getenv("REDIS_PASSWORD"));
        subscribe(redis);
        epoll_ctl(poller, EPOLL_CTL_ADD, redis, &(struct epoll_event){EPOLLIN, {.fd = redis}});
    }
    printf("ready %d\n", ntohs(here.sin_port));
    fflush(stdout);
    struct epoll_event events[256];
    for (;;) {
        int count = epoll_wait(poller, events, 256, -1);
        for (int index = 0; index < count; index++) {
            int fd = events[index].data.fd;
            if (fd == redis) {
                redis_readable(fd);
            } else if (fd == listener) {
                int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (client < 0 || client >= MOST_FDS) die("accept");
                setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                epoll_ctl(poller, EPOLL_CTL_ADD, client, &(struct epoll_event){EPOLLIN, {.fd = client}});
            } else {
                client_readable(fd);
            }
        }
    }
}
