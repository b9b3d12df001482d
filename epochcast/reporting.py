"""Where a run's packets go: to the supervisor over the attempt's socket, or, outside a job, to the terminal."""

import json
import math
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any, Protocol

from epochcast.errors import EpochcastError

MAX_PACKET_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 8 * 1024


class Disconnected(EpochcastError):
    """Raised when the supervisor is gone: nothing that is computed now would be kept, so the script should end."""


class Outlet(Protocol):
    """Takes packets: dicts of JSON values without NaN or infinity."""

    def send(self, packet: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class AttemptSocket:
    """The attempt's Unix SOCK_SEQPACKET socket: one packet, one message, in the kernel's hands when `send` returns.

    Stdlib `json`, because importing orjson costs more (16 ms) than it saves (2 µs a report, 2026-11-23).
    """

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            _connect(self._socket, path)
        except OSError as error:
            self._socket.close()
            raise Disconnected(f"can't reach the supervisor at {path} ({error}): no report can be kept") from error

    def send(self, packet: dict[str, Any]) -> None:
        """Raises Disconnected when the supervisor is gone, ValueError when the packet is over 64 KiB."""
        encoded = _ENCODE(packet).encode()
        if len(encoded) > MAX_PACKET_BYTES:
            raise ValueError(
                f"a {packet['type']} of {len(encoded)} bytes is too large; at most {MAX_PACKET_BYTES} fit: send less"
            )
        try:
            self._socket.send(encoded)
        except OSError as error:
            raise Disconnected(f"the supervisor is gone ({error}): no {packet['type']} can be kept") from error

    def close(self) -> None:
        self._socket.close()


class Terminal:
    """The stand-in outside a job: prints what a job would send."""

    def __init__(self, total_epochs: int) -> None:
        self._total_epochs = total_epochs

    def send(self, packet: dict[str, Any]) -> None:
        if packet["type"] != "epoch":
            print(self._line(packet), file=sys.stdout, flush=True)

    def close(self) -> None:
        pass

    def _line(self, packet: dict[str, Any]) -> str:
        match packet["type"]:
            case "report":
                step = "" if packet["step"] is None else f" step {packet['step']}"
                return f"[report] epoch {packet['epoch']}/{self._total_epochs}{step} {_numbers_text(packet)}"
            case "checkpoint":
                return f"[checkpoint] epoch {packet['epoch']}: {packet['file']} ({packet['bytes']:,} bytes)"
            case "shard":
                size = sum(file["bytes"] for file in packet["files"])
                return f"[checkpoint] epoch {packet['epoch']}: {packet['checkpoint']} ({size:,} bytes of this rank)"
            case "model":
                return f"[model] {packet['file']} ({packet['bytes']:,} bytes) {_numbers_text(packet)}".rstrip()
            case "resumed":
                return f"[resumed] after epoch {packet['epoch']}"
            case "log" if packet["level"] == "INFO":
                return str(packet["message"])
            case _:
                return f"{packet['level']}: {packet['message']}"


def finite(metrics: Mapping[str, Any]) -> tuple[dict[str, float | None], list[str]]:
    """The metrics as JSON can hold them (None for NaN and infinity), and the names of those that were not finite.

    Takes numbers and one-element tensors or arrays of any library. Raises TypeError that names any other metric.
    """
    values: dict[str, float | None] = {}
    non_finite = []
    for name, value in metrics.items():
        number = value if type(value) is float else _number(name, value)
        if math.isfinite(number):
            values[name] = number
        else:
            values[name] = None
            non_finite.append(name)
    return values, non_finite


def short(message: object) -> str:
    """The message as valid Unicode of at most 8 KiB, so that it fits a packet however JSON escapes it."""
    encoded = str(message).encode("utf-8", "replace")
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return encoded.decode()
    mark = f" … (cut; it had {len(encoded)} bytes)"
    return encoded[: MAX_MESSAGE_BYTES - len(mark.encode())].decode("utf-8", "ignore") + mark


_ENCODE = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def _connect(connection: socket.socket, path: str) -> None:
    """By a descriptor of the folder: an address has at most 107 bytes, a work folder may be deeper."""
    folder = os.open(os.path.dirname(path), os.O_PATH)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    finally:
        os.close(folder)


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, str | bytes):
            raise TypeError("text is no number")
        item = getattr(value, "item", None)  # tensors and arrays, without importing their library
        return float(value if item is None else item())
    except OverflowError:
        return math.inf
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"metric {name!r} is {_excerpt(value)} ({error}); report numbers or one-element tensors"
        ) from error


def _excerpt(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _numbers_text(packet: dict[str, Any]) -> str:
    shown = {name: "not finite" if value is None else f"{value:.6g}" for name, value in packet["metrics"].items()}
    return "  ".join(f"{name}={text}" for name, text in shown.items())
