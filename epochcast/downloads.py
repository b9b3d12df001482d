"""Fetch a file of the registry: resumed where it broke off, and kept only when its sha256 is the registered one."""

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import httpx2

from epochcast.errors import DamagedDownload, Refused, Unreachable, UsageError
from epochcast.transport import TRANSIENT, Transport, jittered

CHUNK_BYTES = 1 << 20
TRIES = 5

OnBytes = Callable[[int], None]
"""Called with the bytes that are on disk so far."""


async def download(
    transport: Transport, source: str, target: Path, *, size: int, sha256: str, on_bytes: OnBytes = lambda _done: None
) -> Path:
    """`target`, whole and checked. An existing file is replaced only by the finished one.

    What came before a failure stays beside it as `<name>.<sha256>.part`, and the next call goes on from there.
    Raises DamagedDownload, Unreachable (or Refused, where it may pass) after five tries without progress, UsageError
    when `target` can't be written.
    """
    part = target.with_name(f"{target.name}.{sha256[:12]}.part")
    try:
        await _fetch(transport, source, part, size, on_bytes)
        await _check(part, size, sha256)
        os.replace(part, target)
    except OSError as error:
        raise UsageError(f"{target} can't be written ({error.strerror or error}); choose another place") from error
    return target


async def _fetch(transport: Transport, source: str, part: Path, size: int, on_bytes: OnBytes) -> None:
    tries = 0
    while (have := _size(part)) < size or have == 0:
        try:
            await _fetch_rest(transport, source, part, have, on_bytes)
            if _size(part) < size:
                raise Unreachable(f"the download of {source} broke off after {_size(part)} of {size} bytes")
        except (Unreachable, Refused) as error:
            if isinstance(error, Refused) and error.problem.status not in TRANSIENT:
                raise
            tries = 1 if _size(part) > have else tries + 1
            if tries == TRIES:
                raise
            await asyncio.sleep(jittered(tries))
        else:
            return


async def _fetch_rest(transport: Transport, source: str, part: Path, have: int, on_bytes: OnBytes) -> None:
    # `identity`: a compressed body would have other offsets and another hash.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    async with transport.stream(source, headers) as response:
        resumes = response.status_code == 206 and _starts_at(response) == have
        if have and not resumes and response.status_code != 200:
            await asyncio.to_thread(part.unlink)  # the server can't go on from here: the next try starts over
            return
        done = have if resumes else 0
        with part.open("r+b" if resumes else "wb") as file:
            file.seek(done)
            async for chunk in response.aiter_raw(CHUNK_BYTES):
                await asyncio.to_thread(file.write, chunk)
                done += len(chunk)
                on_bytes(done)


def _starts_at(response: httpx2.Response) -> int:
    """The first byte of a 206, from `Content-Range: bytes 100-199/200`; -1 when it doesn't say."""
    words = response.headers.get("Content-Range", "").removeprefix("bytes ").split("-", 1)
    return int(words[0]) if words[0].isdigit() else -1


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


async def _check(part: Path, size: int, sha256: str) -> None:
    found = await asyncio.to_thread(_sha256, part)
    if found != sha256:
        found_size = _size(part)
        await asyncio.to_thread(part.unlink)
        raise DamagedDownload(
            f"the downloaded file has {found_size} bytes and sha256 {found}, the registry says {size} and {sha256}; "
            "it was thrown away: download it again"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
