/* The message that all relays carry: 205 bytes of JSON with a number and the time of its publishing between @ signs. */
#ifndef PAYLOAD_H
#define PAYLOAD_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define PAYLOAD_BYTES 205

static inline uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/* Exactly PAYLOAD_BYTES at `at`, which has room for one more. */
static inline void write_payload(char *at, int job, unsigned number, uint64_t ns) {
    char text[PAYLOAD_BYTES + 1];
    int length = snprintf(text, sizeof text,
                          "{\"id\":\"2-%u\",\"type\":\"progress\",\"job_id\":%d,\"status\":\"running\",\"progress\":0.45,"
                          "\"current_epoch\":45,\"current_loss\":0.0234,\"mark\":\"@%u@%llu@\",\"pad\":\"",
                          number, job, number, (unsigned long long)ns);
    memcpy(at, text, length);
    memset(at + length, 'x', PAYLOAD_BYTES - 2 - length);
    memcpy(at + PAYLOAD_BYTES - 2, "\"}", 2);
}

#endif
