"""Who is a stray and who is not, while processes come and go."""

import os
import subprocess
import sys

from tests.waiting import wait_until
from worker.process_tree import descendants, is_alive, is_descendant, kill_tree, start_time, subtrees_except

# Forks and ends children as fast as it can, as a data loader does at each epoch.
BUSY = """
import os
while True:
    pid = os.fork()
    os._exit(0) if pid == 0 else os.waitpid(pid, 0)
"""


def test_what_a_launchers_processes_fork_is_never_a_stray() -> None:
    launcher = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        wait_until(lambda: descendants(launcher.pid), "the first child", timeout_s=30, every_s=0)
        for _ in range(100):
            strays = subtrees_except(os.getpid(), {launcher.pid})
            assert not [pid for pid in strays if is_descendant(pid, launcher.pid)]
    finally:
        launcher.kill()
        launcher.wait()


def test_a_lost_subtree_is_found_whole_and_ended() -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: len(descendants(parent.pid)) == 1, "the grandchild")
    assert set(subtrees_except(os.getpid(), set())) >= {parent.pid, *descendants(parent.pid)}
    started = start_time(parent.pid)
    assert started is not None
    assert not is_alive(parent.pid, started + 1), "a later process of the same number is another one"
    below = descendants(parent.pid)
    kill_tree(parent.pid, started)
    parent.wait()
    wait_until(lambda: all(start_time(pid) is None for pid in below), "the end of the grandchild")
