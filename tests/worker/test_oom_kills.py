"""A kill by the kernel for want of memory is told from a kill by somebody: by time, by cgroup, and by name."""

from pathlib import Path

import pytest

from worker import oom_kills
from worker.oom_kills import RECENT_S, OomKills

NO_LOG = Path("/nonexistent/kmsg")


class Machine:
    """Counters as the kernel shows them. `cgroup`: the line of /proc/self/cgroup."""

    def __init__(self, folder: Path, cgroup: str) -> None:
        self.proc, self.cgroups, self.now = folder / "proc", folder / "cgroup", 100.0
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self/cgroup").write_text(f"{cgroup}\n")
        self.write(self.proc / "vmstat", "nr_free_pages 7\noom_kill 3\n")

    def write(self, file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def watch(self, log: Path = NO_LOG) -> OomKills:
        return OomKills(self.proc, self.cgroups, log, lambda: self.now)


def test_a_kill_just_before_the_death_is_the_kernels_an_old_one_is_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/")
    kills = machine.watch()
    assert not kills.has_killed([])
    machine.write(machine.proc / "vmstat", "oom_kill 4\n")
    kills.look()
    machine.now += 3600
    assert not kills.has_killed([]), "somebody else's, an hour ago"
    machine.write(machine.proc / "vmstat", "oom_kill 5\n")
    machine.now += RECENT_S - 1
    kills.look()
    machine.now += RECENT_S - 1
    assert kills.has_killed([])


@pytest.mark.parametrize(
    ("cgroup", "file"),
    [
        ("0::/slice/job", "slice/job/memory.events"),
        ("0::/", "memory.events"),
        ("4:cpu,memory:/docker/7", "memory/docker/7/memory.oom_control"),
    ],
)
def test_the_own_cgroup_counts_and_the_rest_of_the_host_does_not(tmp_path: Path, cgroup: str, file: str) -> None:
    machine = Machine(tmp_path, cgroup)
    counter = machine.cgroups / file
    machine.write(counter, "oom 9\noom_kill 5\noom_group_kill 8\n")
    kills = machine.watch()
    machine.write(machine.proc / "vmstat", "oom_kill 4\n")
    assert not kills.has_killed([])
    machine.write(counter, "oom 9\noom_kill 6\noom_group_kill 8\n")
    assert kills.has_killed([])


def test_where_the_kernel_names_its_victims_only_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, "0::/")
    log = tmp_path / "kmsg"
    monkeypatch.setattr(oom_kills, "pid_namespace", lambda: "pid:[4026531836]")
    kills = machine.watch(log)
    later = int(kills._began_us) + 2_000_000
    machine.write(machine.proc / "vmstat", "oom_kill 5\n")
    machine.write(
        log,
        f"6,339,5140900,-;Out of memory: Killed process 7 (python) total-vm:1kB\n"
        f"3,1209,{later},-;Memory cgroup out of memory: Killed process 4711 (pt_data_worker) total-vm:170324kB, "
        "anon-rss:153216kB, file-rss:6108kB, shmem-rss:0kB, UID:0 pgtables:364kB oom_score_adj:500\n",
    )
    assert kills.has_killed([4711, 12])
    assert not kills.has_killed([12]), "the kernel killed another process"
    assert not kills.has_killed([7]), "before this watch began"


def test_a_machine_without_counters_says_no(tmp_path: Path) -> None:
    assert not OomKills(tmp_path, tmp_path, NO_LOG).has_killed([1])


def test_this_machines_counter_is_found() -> None:
    kills = OomKills()
    kills.look()
    assert not kills.has_killed([2**22 + 1])
