"""Huge pages change how memory lies, never what it holds."""

import subprocess
import sys

from tests.worker.host import CHECKOUT
from worker import huge_pages

MAPS = """\
55d000000000-55d000400000 rw-p 00000000 00:00 0                          [heap]
7f0000100000-7f0000500000 rw-p 00000000 00:00 0
7f0000600000-7f0000700000 rw-p 00000000 00:00 0
7f0001000000-7f0002000000 r--p 00000000 00:00 0
7f0003000000-7f0004000000 rw-p 00000000 fe:00 1234                       /usr/lib/libtorch.so
7f0005000000-7f0006000000 rw-s 00000000 00:01 99                         /dev/zero (deleted)
7ffc00000000-7ffc00400000 rw-p 00000000 00:00 0                          [stack]
"""


def test_only_whole_huge_pages_of_a_process_s_own_memory_are_taken() -> None:
    assert list(huge_pages._own_memory(MAPS)) == [
        (0x55D000000000, 0x55D000400000),
        (0x7F0000200000, 0x7F0000400000),
    ]


def test_what_memory_holds_stays_as_it_was() -> None:
    code = """
import hashlib, random
from worker import huge_pages
kept = [random.Random(0).randbytes(3 * 2**20 + 7) for _ in range(8)]
before = [hashlib.sha256(block).digest() for block in kept]
huge_pages.collapse()
assert [hashlib.sha256(block).digest() for block in kept] == before
"""
    subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=True, timeout=60)
