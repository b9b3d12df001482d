"""Who is written to without being asked: those for whom the next event is the next one, and only while they read."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import hiredis
import pytest
from redis.asyncio.connection import AbstractConnection

from api.channels import Channel, Channels
from api.feed import Feed
from api.level import Owed, pay
from api.limits import Limits
from api.redis_pushes import RedisPushes
from api.subscriber import Outbox, Subscriber
from epochcast.events import EventId
from shared.event_log import feed_channel

pytestmark = pytest.mark.anyio


class Recorder:
    """A line that keeps what is written, and stalls once that is `room` bytes."""

    def __init__(self, room: int = 10**6) -> None:
        self.drains = True
        self.has_written = False
        self.stalled: Any = None
        self.written = b""
        self.room = room
        self.broken = self.aborted = False
        self.transport = cast(asyncio.Transport, self)

    def write(self, frames: bytes) -> None:
        if self.broken:
            raise RuntimeError("the handler is closed")
        self.written += frames
        if len(self.written) >= self.room:
            self.drains = False
            if self.stalled is not None:
                self.stalled()

    def abort(self) -> None:
        self.aborted = True


def event(seq: int, *, prev: int | None = None, kind: str = "progress", status: str = "running") -> bytes:
    before = seq - 1 if prev is None else prev
    plain = b"2-%d" % seq if status == "running" else b""
    return b"%b\n2-%d 2-%d %b %b - alice\n{%d}" % (plain, seq, before, kind.encode(), status.encode(), seq)


def frame(seq: int) -> bytes:
    payload = b"{%d}" % seq
    return bytes((0x81, len(payload))) + payload


async def level_subscriber(channel: Channel, line: Recorder) -> Subscriber:
    """One that has everything up to 2-1 and waits."""
    subscriber = Subscriber(channel.job_id, Outbox(10**6, lambda close: None), cast(Any, line))
    subscriber.cursor = EventId(2, 1)
    subscriber.is_behind = False
    subscriber.outbox.is_idle = True
    channel.subscribers.add(subscriber)
    return subscriber


def channel_at_one() -> Channel:
    channel = Channel(7)
    channel.level.follow(EventId(2, 1))
    return channel


def hear(channel: Channel, *events: bytes) -> None:
    """One read from Redis."""
    owed: list[Owed] = []
    channel.hear(events, owed)
    pay(owed)


async def test_all_are_level_after_their_first_burst_and_get_each_event_once() -> None:
    channel, lines = channel_at_one(), [Recorder() for _ in range(3)]
    subscribers = [await level_subscriber(channel, line) for line in lines]
    hear(channel, event(2))
    assert channel.level.count == 3
    hear(channel, event(3), event(4, kind="log"))
    assert [line.written for line in lines] == [frame(2) + frame(3) + frame(4)] * 3
    assert {subscriber.cursor for subscriber in subscribers} == {EventId(2, 4)}


async def test_one_that_stalls_in_a_fan_out_leaves_alone_and_loses_nothing() -> None:
    channel = channel_at_one()
    stalling, others = Recorder(room=2 * len(frame(2))), [Recorder() for _ in range(4)]
    subscribers = [await level_subscriber(channel, line) for line in (*others[:2], stalling, *others[2:])]
    for seq in (2, 3, 4):
        hear(channel, event(seq))
    assert [line.written for line in others] == [frame(2) + frame(3) + frame(4)] * 4
    assert stalling.written == frame(2) + frame(3)
    (slow,) = [subscriber for subscriber in subscribers if not subscriber.is_level]
    waiting = slow.outbox.take()
    assert waiting is not None
    assert (waiting.id, waiting.text, slow.outbox.take()) == (EventId(2, 4), "{4}", None)


async def test_an_event_that_does_not_follow_is_for_each_to_look_at() -> None:
    channel, line = channel_at_one(), Recorder()
    subscriber = await level_subscriber(channel, line)
    hear(channel, event(2))
    hear(channel, event(5, prev=4))
    assert channel.level.count == 0
    assert subscriber.is_behind, "3 and 4 have to be read"
    assert (line.written, subscriber.cursor) == (frame(2), EventId(2, 2))


async def test_events_of_a_worker_that_is_not_updated_yet_are_told_one_by_one() -> None:
    channel, line = channel_at_one(), Recorder()
    subscriber = await level_subscriber(channel, line)
    hear(channel, event(2).partition(b"\n")[2], event(3).partition(b"\n")[2])
    texts = [subscriber.outbox.take(), subscriber.outbox.take()]
    assert [text is not None and text.text for text in texts] == ["{2}", "{3}"]


async def test_the_last_event_goes_through_the_queue_with_its_close() -> None:
    channel, line = channel_at_one(), Recorder()
    subscriber = await level_subscriber(channel, line)
    hear(channel, event(2), event(3, kind="complete", status="succeeded"))
    last = subscriber.outbox.take()
    assert line.written == frame(2)
    assert last is not None
    assert last.close is not None
    assert (last.id, last.close.reason) == (EventId(2, 3), "succeeded")


async def test_what_was_written_to_all_keeps_each_from_being_idle() -> None:
    channel, line = channel_at_one(), Recorder()
    await level_subscriber(channel, line)
    hear(channel, event(2))
    line.has_written = False
    channel.level.note_writes()
    channel.level.note_writes()
    hear(channel, event(3))
    assert not line.has_written
    channel.level.note_writes()
    assert line.has_written


async def test_a_transport_that_raises_is_dropped_and_the_others_miss_nothing() -> None:
    """As uvloop's does at a write to what is closed."""
    channel, lines = channel_at_one(), [Recorder() for _ in range(3)]
    for line in lines:
        await level_subscriber(channel, line)
    hear(channel, event(2))
    lines[1].broken = True
    hear(channel, event(3))
    hear(channel, event(4))
    assert [line.aborted for line in lines] == [False, True, False]
    assert channel.level.count == 2
    for line in (lines[0], lines[2]):
        assert line.written == frame(2) + frame(3) + frame(4)


async def test_what_came_of_a_read_that_breaks_off_is_told() -> None:
    channels, line = Channels(linger_s=10), Recorder()
    channel = channels._occupied(7)
    channel.level.follow(EventId(2, 1))
    subscriber = await level_subscriber(channel, line)
    pushes = RedisPushes(connection(), feed_of(channels)._hear)
    pushes.data_received(message(event(2)))
    pushes.data_received(message(event(3)) + b"no such type\r\n")
    with pytest.raises(hiredis.ProtocolError):
        await pushes.lost()
    subscriber.leave()
    assert (line.written, subscriber.cursor) == (frame(2) + frame(3), EventId(2, 3))


async def test_a_job_that_can_not_be_told_takes_nothing_from_those_of_the_same_read() -> None:
    channels = Channels(linger_s=10)
    first, second, third = (channels._occupied(job_id) for job_id in (7, 8, 9))
    lines = {channel.job_id: Recorder() for channel in (first, second, third)}
    for channel in (first, second, third):
        channel.level.follow(EventId(2, 1))
        await level_subscriber(channel, lines[channel.job_id])
    (broken,) = second.subscribers
    for channel in (first, third):
        hear(channel, event(2))  # these two are level; the other one would be after its first event
    lines[8].broken = True
    channels.hear({feed_channel(job_id).encode(): [event(2 if job_id == 8 else 3)] for job_id in lines})
    assert [lines[job_id].written for job_id in (7, 9)] == [frame(2) + frame(3)] * 2
    assert broken.is_behind, "it reads the log"


def feed_of(channels: Channels) -> Feed:
    """One that is not started: its answers are given to it."""
    return Feed(
        "redis://127.0.0.1:1/0",
        Limits(),
        on_messages=channels.hear,
        on_pattern_message=lambda channel, data: None,
        on_subscribed=channels.fall_behind,
    )


def connection() -> AbstractConnection:
    """As far as it is asked for: an open one."""
    transport = SimpleNamespace(set_protocol=lambda protocol: None, is_closing=lambda: False)
    return cast(AbstractConnection, SimpleNamespace(_writer=SimpleNamespace(transport=transport)))


def message(data: bytes) -> bytes:
    """What Redis pushes for job 7."""
    parts = (b"message", feed_channel(7).encode(), data)
    return b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
