"""How long an attempt may run and be silent, and what its processes are doing when it is silent for too long."""

import time
from pathlib import Path

from epochcast.jobs import JobError, TrainingJobSpec
from shared.stalls import STALL_AT_LEAST_S, STALL_EPOCHS
from worker.conversation import Conversation
from worker.narrator import Voice
from worker.outcome import Cut
from worker.output import OutputFile
from worker.stacks import collect
from worker.tree import Tree

STACKS_CHARACTERS = 6_000


class TimeLimits:
    """Of one attempt, from its start. `output`: where the stacks are kept beside the log."""

    def __init__(
        self,
        spec: TrainingJobSpec,
        conversation: Conversation,
        narrator: Voice,
        tree: Tree,
        folder: Path,
        output: OutputFile,
    ) -> None:
        self._spec = spec
        self._conversation = conversation
        self._narrator = narrator
        self._tree = tree
        self._folder = folder
        self._output = output
        self._began = time.monotonic()
        self._stall_told_at = 0.0

    def broken(self) -> tuple[Cut, JobError] | None:
        """Why the attempt has to end now, if it has. A silence without a limit is told once, with the stacks."""
        now = time.monotonic()
        limit_s = self._spec.max_runtime_s
        if limit_s is not None and now - self._began > limit_s:
            self._narrator.close_epoch()
            message = f"ran for longer than max_runtime_s = {limit_s:g} s"
            return Cut.TIMEOUT, JobError(type="timeout", message=message, detail=self._narrator.state.place)
        last_report = self._conversation.last_report
        silent_s = now - last_report
        stall_s = self._spec.stall_timeout_s
        if stall_s is not None and silent_s > stall_s:
            message = f"reported nothing for longer than stall_timeout_s = {stall_s:g} s"
            place, stacks = self._narrator.state.place, self.tell_stacks()
            return Cut.STALLED, JobError(type="stalled", message=message, detail=place, traceback=stacks)
        usual_s = max(STALL_AT_LEAST_S, STALL_EPOCHS * (self._narrator.state.epoch_s or 0.0))
        if self._stall_told_at < last_report and silent_s > usual_s:
            self._stall_told_at = now
            self._narrator.log("WARNING", f"no report for {silent_s:.0f} s; the stacks of its processes follow")
            self.tell_stacks()
        return None

    def tell_stacks(self) -> str | None:
        """What all processes of this host are doing, into the log. Returns the first rank's stacks."""
        found = collect(self._tree.launcher, self._folder)
        for stacks in found:
            for line in (stacks.title, *(f"  {line}" for line in stacks.lines)):
                self._output.write(line.encode() + b"\n")
                self._narrator.log("WARNING", line)
        first = next((stacks for stacks in found if stacks.rank is not None), None)
        return "\n".join((first.title, *first.lines))[:STACKS_CHARACTERS] if first is not None else None
