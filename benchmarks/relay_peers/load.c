/* The load: opens WebSockets, lets a second process publish, counts what arrives, checks that nothing lacks or jumps.
 *
 *     load REDIS_PORT FLAVOUR PORT SERVER_PID FIRST_JOB JOBS SUBSCRIBERS        password in REDIS_PASSWORD, TOKEN
 *
 * Opens all sockets, then takes commands, each answered by one line of JSON; sockets stay open and answer pings:
 *     closed OUTSTANDING COUNT    per job; the next are published when all subscribers have the last
 *     rate PER_SECOND COUNT       messages over all jobs in turn, evenly spaced
 * cpu_s is the server's CPU time meanwhile, by its process' clock. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/wait.h>

#include "publisher.h"

#define AT_ONCE 64 /* handshakes in flight */

enum state { SHAKING, GREETING, OPEN };

struct socket {
    int fd, job;
    enum state state;
    unsigned next; /* the number that has to come */
    char *rest;
    size_t rest_length;
};

static struct socket *sockets;
static int *arrived; /* by job, of what is outstanding */
static int *left;    /* by job, to be published */
static enum flavour flavour;
static int first, jobs, subscribers, total, opened, poller, orders, port, outstanding;
static pid_t server;
static long delivered, wanted;
static unsigned *delays;
static size_t delays_length, delays_room;
static struct order pending[1 << 16];
static int pending_count;
static char buffer[1 << 20];

static double seconds(void) { return now_ns() / 1e9; }

static double server_cpu(void) {
    clockid_t clock;
    struct timespec spent;
    if (clock_getcpuclockid(server, &clock) || clock_gettime(clock, &spent)) die("server's clock");
    return spent.tv_sec + spent.tv_nsec / 1e9;
}

static void give_orders(void) {
    if (pending_count && write(orders, pending, pending_count * sizeof *pending) < 0) die("orders");
    pending_count = 0;
}

static void order_next(int job) {
    int count = left[job] < outstanding ? left[job] : outstanding;
    left[job] -= count;
    if (count) pending[pending_count++] = (struct order){job, count, 0, 0};
}

/* A client's frame: masked, with a mask of zeros. */
static void say(struct socket *one, unsigned char opcode, const char *text, size_t length) {
    char frame[256] = {(char)(0x80 | opcode), (char)(0x80 | length), 0, 0, 0, 0};
    memcpy(frame + 6, text, length);
    if (write(one->fd, frame, 6 + length) < 0) die("write");
}

static void is_open(struct socket *one) {
    one->state = OPEN;
    opened++;
}

/* socket.io: "0{…" greets, "40" joins its namespace, an event joins the job's room, "2" is its ping. */
static void talk_socket_io(struct socket *one, const char *text, size_t length) {
    char join[64];
    if (length == 1 && text[0] == '2') say(one, 1, "3", 1);
    else if (text[0] == '0') say(one, 1, "40", 2);
    else if (!memcmp(text, "40", 2)) say(one, 1, join, snprintf(join, sizeof join, "42[\"join\",\"%d\"]", first + one->job));
    else if (one->state == GREETING) is_open(one);
}

static void take(struct socket *one, const char *text, size_t length) {
    const char *mark = memchr(text, '@', length);
    if (!mark) {
        if (flavour == SOCKET_IO) talk_socket_io(one, text, length);
        else if (one->state == GREETING) is_open(one);
        return;
    }
    char *after;
    unsigned number = strtoul(mark + 1, &after, 10);
    uint64_t published = strtoull(after + 1, NULL, 10);
    if (number != one->next++) {
        fprintf(stderr, "job %d: message %u came where %u was due\n", first + one->job, number, one->next - 1);
        exit(1);
    }
    if (delays_length == delays_room) delays = realloc(delays, sizeof *delays * (delays_room = 2 * delays_room + 4096));
    delays[delays_length++] = (now_ns() - published) / 1000;
    delivered++;
    if (++arrived[one->job] == outstanding * subscribers && outstanding) {
        arrived[one->job] = 0;
        order_next(one->job);
    }
}

/* Whole frames of a server from `at`; the bytes they take. */
static size_t frames(struct socket *one, const char *at, size_t length) {
    size_t used = 0;
    while (length - used >= 2) {
        const unsigned char *head = (const unsigned char *)at + used;
        size_t head_length = 2, body = head[1] & 127;
        if (body == 126) head_length = 4, body = head[2] << 8 | head[3];
        if (body == 127) head_length = 10, body = head[6] << 24 | head[7] << 16 | head[8] << 8 | head[9];
        if (length - used < head_length + body) break;
        const char *text = (const char *)head + head_length;
        if ((head[0] & 15) == 9) say(one, 10, text, body);
        else if ((head[0] & 15) == 1) take(one, text, body);
        else {
            fprintf(stderr, "job %d: frame of opcode %d: %.*s\n", first + one->job, head[0] & 15, (int)body, text);
            exit(1);
        }
        used += head_length + body;
    }
    return used;
}

static void readable(struct socket *one) {
    memcpy(buffer, one->rest, one->rest_length);
    ssize_t got = read(one->fd, buffer + one->rest_length, sizeof buffer - one->rest_length - 1);
    if (got <= 0) {
        fprintf(stderr, "job %d: the server closed a socket\n", first + one->job);
        exit(1);
    }
    size_t length = one->rest_length + got, used = 0;
    buffer[length] = 0;
    if (one->state == SHAKING) {
        char *end = strstr(buffer, "\r\n\r\n");
        if (strncmp(buffer, "HTTP/1.1 101", 12)) {
            fprintf(stderr, "the server refused: %.300s\n", buffer);
            exit(1);
        }
        if (!end) return;
        used = end + 4 - buffer;
        one->state = GREETING;
        if (flavour == PLAIN || flavour == CEILING) is_open(one);
    }
    used += frames(one, buffer + used, length - used);
    one->rest_length = length - used;
    if (one->rest_length) one->rest = realloc(one->rest, one->rest_length);
    memcpy(one->rest, buffer + used, one->rest_length);
}

static void open_socket(struct socket *one, int job) {
    char request[2048], path[128];
    *one = (struct socket){.fd = connect_to(port), .job = job, .next = 2};
    snprintf(path, sizeof path, "/api/v1/training-jobs/%d/ws", first + job);
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
                          "Authorization: Bearer %s\r\n\r\n",
                          flavour == SOCKET_IO ? "/socket.io/?EIO=4&transport=websocket" : path, port, getenv("TOKEN"));
    if (write(one->fd, request, length) != length) die("handshake");
    epoll_ctl(poller, EPOLL_CTL_ADD, one->fd, &(struct epoll_event){EPOLLIN, {.ptr = one}});
}

/* One round of events; 1 when a command waits. */
static int step(int timeout_ms) {
    struct epoll_event events[512];
    int count = epoll_wait(poller, events, 512, timeout_ms), is_told = 0;
    if (count == 0 && timeout_ms > 0) {
        fprintf(stderr, "nothing came for %d ms: %ld of %ld delivered, %d of %d open\n", timeout_ms, delivered, wanted,
                opened, total);
        exit(1);
    }
    for (int index = 0; index < count; index++) {
        if (events[index].data.ptr) readable(events[index].data.ptr);
        else is_told = 1;
    }
    give_orders();
    return is_told;
}

static int by_value(const void *one, const void *other) {
    return (*(unsigned *)one > *(unsigned *)other) - (*(unsigned *)one < *(unsigned *)other);
}

static void measure(const char *kind, int a, int b) {
    double start, cpu;
    delivered = 0, delays_length = 0, outstanding = 0;
    memset(arrived, 0, jobs * sizeof *arrived);
    start = seconds(), cpu = server_cpu();
    if (flavour == CEILING) {
        char count[16];
        say(&sockets[0], 1, count, snprintf(count, sizeof count, "%d", b));
        wanted = (long)b * total;
    } else if (!strcmp(kind, "closed")) {
        outstanding = a, wanted = (long)b * total;
        for (int job = 0; job < jobs; job++) left[job] = b, order_next(job);
    } else {
        pending[pending_count++] = (struct order){0, b, a, 0};
        wanted = (long)b * subscribers;
    }
    give_orders();
    while (delivered < wanted) step(20000);
    double wall = seconds() - start;
    cpu = server_cpu() - cpu;
    qsort(delays, delays_length, sizeof *delays, by_value);
    printf("{\"delivered\": %ld, \"wall_s\": %.6f, \"cpu_s\": %.6f, \"p50_us\": %u, \"p99_us\": %u}\n", delivered, wall, cpu,
           delays[delays_length / 2], delays[delays_length * 99 / 100]);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 8) return 2;
    const char *flavours[] = {"plain", "epochcast", "socket.io", "ceiling"};
    while (strcmp(argv[2], flavours[flavour])) flavour++;
    port = atoi(argv[3]), server = atoi(argv[4]), first = atoi(argv[5]), jobs = atoi(argv[6]), subscribers = atoi(argv[7]);
    total = jobs * subscribers;
    sockets = calloc(total, sizeof *sockets), arrived = calloc(jobs, sizeof *arrived), left = calloc(jobs, sizeof *left);
    int ends[2];
    if (pipe(ends)) die("pipe");
    fcntl(ends[1], F_SETPIPE_SZ, 1 << 20);
    if (fork() == 0) {
        close(ends[1]);
        run_publisher(ends[0], atoi(argv[1]), flavour, first, jobs);
        return 0;
    }
    close(ends[0]), orders = ends[1];
    poller = epoll_create1(0);
    double start = seconds(), cpu = server_cpu();
    for (int next = 0; opened < total; step(next < total && next - opened < AT_ONCE ? 0 : 60000))
        if (next < total && next - opened < AT_ONCE) open_socket(&sockets[next], next / subscribers), next++;
    printf("{\"opened\": %d, \"wall_s\": %.6f, \"cpu_s\": %.6f}\n", opened, seconds() - start, server_cpu() - cpu);
    fflush(stdout);
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &(struct epoll_event){EPOLLIN, {.ptr = NULL}});
    for (char line[256], kind[16];;) {
        int a, b;
        if (!step(-1)) continue;
        ssize_t got = read(0, line, sizeof line - 1);
        if (got <= 0) return 0;
        line[got] = 0;
        if (sscanf(line, "%15s %d %d", kind, &a, &b) != 3) return 2;
        measure(kind, a, b);
    }
}
