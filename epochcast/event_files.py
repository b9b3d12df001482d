"""TensorBoard's event files: scalars only, written without TensorBoard, TensorFlow or protobuf.

The format: TFRecords (length, masked CRC-32C of it, content, masked CRC-32C of that), each a protocol buffer
`tensorflow.Event` (tensorflow/core/util/event.proto). A test reads the files back with TensorBoard's own reader.
"""

import itertools
import os
import struct
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Self

SUFFIX = ".epochcast"
_counter = itertools.count()


class EventFile:
    """One run's curves. Each `add` is on disk when it returns: whoever follows the file sees it."""

    def __init__(self, folder: Path) -> None:
        """In a file of its own, beside those that others wrote into `folder`; ours of an earlier time are removed."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
            old.unlink()
        name = f"events.out.tfevents.{int(time.time()):010d}.{os.getpid()}.{next(_counter)}{SUFFIX}"
        self.path = folder / name
        self._file = self.path.open("wb", buffering=0)
        self._file.write(_record(_number(1, time.time()) + _bytes(3, b"brain.Event:2")))

    def add(self, step: int, scalars: Mapping[str, float], wall_time: float) -> None:
        values = b"".join(_bytes(1, _bytes(1, tag.encode()) + _float(2, value)) for tag, value in scalars.items())
        self._file.write(_record(_number(1, wall_time) + _integer(2, step) + _bytes(5, values)))

    def go_back(self, step: int, wall_time: float) -> None:
        """What was added from `step` on doesn't count any more: a resumed attempt trains those epochs again."""
        session_start = _bytes(7, _integer(1, 1))
        self._file.write(_record(_number(1, wall_time) + _integer(2, step) + session_start))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- protocol buffers: a key (field number and wire type), then the value


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _number(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + _single(value)


def _single(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:  # finite, and beyond what 32 bits hold
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


# --- records


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _masked_crc(length) + content + _masked_crc(content)


def _masked_crc(content: bytes) -> bytes:
    crc = 0xFFFFFFFF
    table = _table()
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    # Masked, because a CRC over data that holds its own CRC is weak.
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli): zlib's is another polynomial."""

    def entry(crc: int) -> int:
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        return crc

    return tuple(entry(number) for number in range(256))
