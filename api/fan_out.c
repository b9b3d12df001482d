/* The same bytes to many sockets, one send(2) for each: all that a delivered message needs, without the interpreter and
 * the event loop's transports in between (docs/decisions.md). Called with Python's lock held; nothing here waits.
 *
 *     cc -O2 -shared -fPIC -o libfan_out.so fan_out.c */
#include <stdint.h>
#include <sys/socket.h>

/* To sockets[from] and those after it. The index of the first that has not taken all, with the bytes that it took in
 * the upper half; `count` when all have. */
int64_t fan_out(const int *sockets, int from, int count, const char *data, int length) {
    for (int at = from; at < count; at++) {
        ssize_t sent = send(sockets[at], data, length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent != length) return at | (int64_t)(sent < 0 ? 0 : sent) << 32;
    }
    return count;
}
