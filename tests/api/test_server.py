"""What a gateway's process has set up before it serves."""

import os
import platform
import subprocess
import sys

import pytest

_HEAPS = """
import ctypes, threading
from api.server import use_one_heap

use_one_heap()
kept = []
threads = [threading.Thread(target=lambda: kept.append(bytearray(10_000))) for _ in range(4)]
for thread in threads:
    thread.start()
    thread.join()
ctypes.CDLL(None).malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of this libc has no heap for each thread")
def test_threads_share_one_heap() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", _HEAPS]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stderr
    assert said.count("Arena ") == 1, said
