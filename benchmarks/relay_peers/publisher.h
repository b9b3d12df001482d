/* The publisher, a process of its own: does what its orders say, as fast as Redis takes it. */
#ifndef PUBLISHER_H
#define PUBLISHER_H

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>

#include "payload.h"
#include "redis_wire.h"

enum flavour { PLAIN, EPOCHCAST, SOCKET_IO, CEILING };

/* per_second 0: `count` messages of `job` at once; else `count` messages over all jobs in turn, evenly spaced. */
struct order {
    int job, count, per_second, unused; /* a size that divides a page of the pipe, so that none is read by halves */
};

static char *outgoing;
static size_t outgoing_length;

/* What Redis answers is dropped, also while it takes no more: two full buffers would wait for each other. */
static void flush_to(int redis) {
    char answers[65536];
    for (size_t sent = 0; sent < outgoing_length;) {
        ssize_t some = send(redis, outgoing + sent, outgoing_length - sent, MSG_DONTWAIT);
        if (some > 0) sent += some;
        else if (errno != EAGAIN) die("publish");
        while (recv(redis, answers, sizeof answers, MSG_DONTWAIT) > 0) {}
        if (some < 0) poll(&(struct pollfd){redis, POLLOUT | POLLIN, 0}, 1, -1);
    }
    outgoing_length = 0;
}

static void append(const void *data, size_t length) {
    memcpy(outgoing + outgoing_length, data, length);
    outgoing_length += length;
}

/* socket.io's emitter packs [uid, packet, options] with msgpack. */
static int pack_for_socket_io(char *at, const char *room, const char *payload) {
    char *start = at;
    at += sprintf(at, "\x93\xa5" "bench" "\x83\xa4" "type" "\x02\xa4" "data" "\x92\xa1" "m\xd9%c", PAYLOAD_BYTES);
    memcpy(at, payload, PAYLOAD_BYTES), at += PAYLOAD_BYTES;
    at += sprintf(at, "\xa3" "nsp\xa1/" "\x83\xa5" "rooms\x91%c%s" "\xa6" "except\x90\xa5" "flags\x80",
                  (char)(0xa0 | strlen(room)), room);
    return at - start;
}

static void publish(enum flavour flavour, int job, unsigned number) {
    char payload[PAYLOAD_BYTES + 1], data[512], channel[64], room[16], head[160];
    int length = 0, channel_length;
    write_payload(payload, job, number, now_ns());
    if (flavour == SOCKET_IO) {
        snprintf(room, sizeof room, "%d", job);
        channel_length = sprintf(channel, "socket.io#/#%s#", room);
        length = pack_for_socket_io(data, room, payload);
    } else {
        channel_length = sprintf(channel, "ec:{%d}:live", job);
        if (flavour == EPOCHCAST) length = sprintf(data, "2-%u\n2-%u 2-%u progress running - alice\n", number, number, number - 1);
        memcpy(data + length, payload, PAYLOAD_BYTES), length += PAYLOAD_BYTES;
    }
    int head_length = sprintf(head, "*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$%d\r\n", channel_length, channel, length);
    append(head, head_length), append(data, length), append("\r\n", 2);
}

static void publish_evenly(int redis, enum flavour flavour, struct order order, int first, int jobs, unsigned *numbers) {
    uint64_t start = now_ns(), step = 1000000000ull / order.per_second;
    for (int done = 0; done < order.count;) {
        uint64_t due = start + done * step, now = now_ns();
        if (now < due) {
            struct timespec pause = {0, due - now};
            nanosleep(&pause, NULL);
            continue;
        }
        publish(flavour, first + done % jobs, numbers[done % jobs]++);
        done++;
        flush_to(redis);
    }
}

static void run_publisher(int orders_fd, int redis_port, enum flavour flavour, int first, int jobs) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1000);
    int redis = redis_connect(redis_port, getenv("REDIS_PASSWORD"));
    unsigned *numbers = malloc(jobs * sizeof *numbers);
    outgoing = malloc(1 << 26);
    for (int index = 0; index < jobs; index++) numbers[index] = 2; /* each job's log has its 2-1 */
    struct order orders[1024];
    for (ssize_t got; (got = read(orders_fd, orders, sizeof orders)) > 0;) {
        for (size_t index = 0; index < got / sizeof *orders; index++) {
            struct order order = orders[index];
            if (order.per_second) publish_evenly(redis, flavour, order, first, jobs, numbers);
            else for (int done = 0; done < order.count; done++) publish(flavour, first + order.job, numbers[order.job]++);
            if (outgoing_length > 1 << 17) flush_to(redis);
        }
        flush_to(redis);
    }
}

#endif
