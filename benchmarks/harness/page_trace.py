"""What a Chromium trace says of one page: how long its main thread worked, which frames came late, and whose fault."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

FRAME_MS = 1000 / 60
LONG_TASK_MS = 50.0
MARK = "bench"
# Tasks with their CPU time, Chromium's own verdict on each frame, and the mark that joins two clocks. No more: what
# is traced of each message would cost more than the message.
CATEGORIES = [
    "-*",
    "disabled-by-default-devtools.timeline",
    "disabled-by-default-devtools.timeline.frame",
    "blink.user_timing",
]
# Asks for every frame there could be, and notes when each began, on the page's clock; counts what sockets bring.
RECORDER = """
(() => {
  const Native = window.WebSocket;
  window.bench = { messages: 0, frames: [] };
  window.WebSocket = class extends Native {
    constructor(...options) {
      super(...options);
      this.addEventListener('message', () => { window.bench.messages += 1; });
    }
  };
  const frame = (at) => { window.bench.frames.push(at); requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
})();
"""
BEGIN = f"performance.mark('{MARK}'); Object.assign(window.bench, {{ messages: 0, frames: [] }})"
END = "[window.bench.frames, window.bench.messages]"


@dataclass(frozen=True, slots=True)
class Task:
    """One task of the page's main thread, on its clock. `cpu_ms` is less than `wall_ms` where a core was missing."""

    at_ms: float
    wall_ms: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class Smoothness:
    """`late`: frames that were due and at which the page had none; `by_page`: at most so many of them because it was at
    work, by its CPU time. `dropped`: of `judged` frames, by Chromium's own verdict."""

    seconds: float
    due: int
    late: int
    by_page: int
    intervals_ms: Sequence[float]
    work_ms: Sequence[float]
    """The main thread's CPU time between each two frames."""
    judged: int
    dropped: int
    busy: float
    cpu: float
    """Shares of the time: the main thread's tasks by the clock, and what of it a core worked."""
    long_tasks: int
    long_work: int
    """Tasks over 50 ms by the clock, and those with as much CPU time."""
    messages_per_s: float

    @classmethod
    def of(cls, trace: bytes, frames_ms: Sequence[float], messages: int) -> "Smoothness":
        events = json.loads(trace)["traceEvents"]
        page = _process_of_page(events)
        begin, end = frames_ms[0], frames_ms[-1]
        tasks = [task for task in _tasks(events, page) if begin <= task.at_ms <= end]
        seconds = (end - begin) / 1000
        intervals = [later - earlier for earlier, later in pairwise(frames_ms)]
        missed = [max(0, round(interval / FRAME_MS) - 1) for interval in intervals]
        judged, dropped = _verdicts(events, page)
        work = _work_between(frames_ms, tasks)
        return cls(
            seconds=seconds,
            due=round((end - begin) / FRAME_MS),
            late=sum(missed),
            by_page=sum(min(count, int(cpu_ms / FRAME_MS)) for count, cpu_ms in zip(missed, work, strict=True)),
            intervals_ms=intervals,
            work_ms=work,
            judged=judged,
            dropped=dropped,
            busy=sum(task.wall_ms for task in tasks) / 1000 / seconds,
            cpu=sum(task.cpu_ms for task in tasks) / 1000 / seconds,
            long_tasks=sum(task.wall_ms > LONG_TASK_MS for task in tasks),
            long_work=sum(task.cpu_ms > LONG_TASK_MS for task in tasks),
            messages_per_s=messages / seconds,
        )


def _process_of_page(events: list[dict[str, Any]]) -> int:
    started = next(event for event in events if event["name"] == "TracingStartedInBrowser")
    (frame,) = [frame for frame in started["args"]["data"]["frames"] if frame["isInPrimaryMainFrame"]]
    return int(frame["processId"])


def _tasks(events: list[dict[str, Any]], page: int) -> Iterator[Task]:
    mark = next(event for event in events if event["name"] == MARK and event["pid"] == page)
    offset_ms = mark["args"]["data"]["startTime"] - mark["ts"] / 1000
    for event in events:
        # A renderer's main thread has the number of its process. Without an end: cut off with the trace.
        if event["name"] == "RunTask" and event["pid"] == event["tid"] == page and "dur" in event:
            yield Task(event["ts"] / 1000 + offset_ms, event["dur"] / 1000, event.get("tdur", 0) / 1000)


def _work_between(frames_ms: Sequence[float], tasks: Sequence[Task]) -> list[float]:
    """The main thread's CPU milliseconds between each two frames."""
    found = [0.0] * (len(frames_ms) - 1)
    place = 0
    for task in sorted(tasks, key=lambda task: task.at_ms):
        while place + 1 < len(found) and frames_ms[place + 1] <= task.at_ms:
            place += 1
        found[place] += task.cpu_ms
    return found


def _verdicts(events: list[dict[str, Any]], page: int) -> tuple[int, int]:
    """Of how many frames Chromium's reporters tell, and of how many one says: dropped, and to be seen."""
    by_frame: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["name"] == "PipelineReporter" and event["ph"] == "b" and event["pid"] == page:
            report = event["args"]["frame_reporter"]
            by_frame[report["frame_sequence"]].append(report)
    dropped = [
        any(report["state"] == "STATE_DROPPED" and report["affects_smoothness"] for report in reports)
        for reports in by_frame.values()
    ]
    return len(dropped), sum(dropped)
