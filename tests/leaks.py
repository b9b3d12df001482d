"""Finds the processes that a test left running."""

import os

import psutil

from shared.processes import adopt_orphans

# Python's own helper, started once and kept.
_HARMLESS = ("multiprocessing.resource_tracker",)
KEPT: set[int] = set()
"""Processes of the tests themselves, started once and kept."""


def watch_orphans() -> None:
    """From here on a process whose parent dies becomes ours, so that it can't slip out of sight."""
    adopt_orphans()


def children() -> set[psutil.Process]:
    """The live children of this process; collects those that have ended."""
    found = set()
    for child in psutil.Process().children():
        try:
            if child.status() == psutil.STATUS_ZOMBIE or child.pid in KEPT:
                continue
            if not any(word in " ".join(child.cmdline()) for word in _HARMLESS):
                found.add(child)
        except psutil.NoSuchProcess:
            continue
    return found


def collect_orphans(before: set[psutil.Process]) -> None:
    """Reaps adopted zombies. Ours are left to their Popen: it wants their exit code."""
    for child in psutil.Process().children():
        try:
            if child not in before and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
        except (ChildProcessError, psutil.NoSuchProcess):  # its Popen was sooner
            continue


def describe(processes: set[psutil.Process]) -> str:
    lines = []
    for process in processes:
        try:
            lines.append(f"{process.pid} {' '.join(process.cmdline())}")
        except psutil.NoSuchProcess:
            continue
    return "; ".join(lines)
