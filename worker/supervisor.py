"""The supervisor's loop: one attempt from its first process to its last, never importing torch.

It drains what the trainer says, watches its limits, and ends it: asked first, killed after the grace.
"""

import selectors
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from operator import itemgetter

import structlog

from epochcast.jobs import JobError, TrainingJobSpec
from shared.settings import Settings
from worker.attempt_socket import AttemptSocket, packets
from worker.conversation import Conversation
from worker.failures import from_exit, with_kills
from worker.first_failure import cause_of
from worker.narrator import Voice
from worker.oom_kills import OomKills
from worker.outcome import Cut, Ending
from worker.output import OutputFile, OutputStream
from worker.process_tree import boottime_s
from worker.recording import Uploads
from worker.reports import SavedFile, read
from worker.requests import Requests
from worker.shard_upload import ShardUploader
from worker.time_limits import TimeLimits
from worker.tree import Tree
from worker.workspace import Workspace

logger = structlog.get_logger(__name__)

TICK_S = 0.5
DRAIN_AFTER_EXIT_S = 5.0
STRAYS_GONE_S = 10.0
# A rank that has failed takes the others along when it ends, and what it left running may keep it from that.
FAILED_ENDS_WITHIN_S = 15.0
# One a rank and some for helpers of the script; the rest of this process's descriptors are the platform's.
MAX_CONNECTIONS = 256
# Of what is there at one look: a script prints, then reports what it computed or ends with a traceback.
_STDOUT, _STDERR, _PACKETS = 1, 2, 3


class Supervisor:
    """Runs one attempt's loop; other threads reach it only through `requests`."""

    def __init__(
        self,
        settings: Settings,
        spec: TrainingJobSpec,
        workspace: Workspace,
        tree: Tree,
        ranks: range,
        attempt_socket: AttemptSocket,
        narrator: Voice,
        uploader: Uploads,
        shards: ShardUploader,
        requests: Requests,
        wake_lease: Callable[[], None],
        *,
        on_cut: Callable[[Cut], None] | None = None,
        hear: Callable[[], None] | None = None,
        awaits_reports: bool = True,
    ) -> None:
        """On several hosts: `on_cut` hears why this host's part is ended, `hear` is called when others said something,
        and only where rank 0 is are reports awaited and time limits kept, for all."""
        self._settings = settings
        self._spec = spec
        self._tree = tree
        self._socket = attempt_socket
        self._narrator = narrator
        self._wake_lease = wake_lease
        self._selector = selectors.DefaultSelector()
        self._requests = requests
        self._has_others = len(ranks) > 1 or spec.resources.nodes > 1
        self._outputs = [OutputFile(workspace.output(rank)) for rank in ranks]
        self._open_streams: set[OutputStream] = set()
        self._stderr: dict[int, OutputStream] = {}
        for rank, output, ends in zip(ranks, self._outputs, tree.streams, strict=True):
            stdout, self._stderr[rank] = (OutputStream(descriptor, rank, output) for descriptor in ends)
            self._open_streams |= {stdout, self._stderr[rank]}
        self._connections: set[socket.socket] = set()
        self._conversation = Conversation(spec, workspace.out, narrator, uploader, shards, self._end)
        self._on_cut = on_cut
        self._hear = hear
        self._awaits_reports = awaits_reports
        self._ended_at: float | None = None
        self._oom_kills = OomKills()
        self._limits = TimeLimits(spec, self._conversation, narrator, tree, workspace.root, self._outputs[0])
        self._kill_at: float | None = None
        self._agent_lost = False
        self.cut: Cut | None = None
        self.cut_error: JobError | None = None

    @property
    def model(self) -> SavedFile | None:
        """The last model that the trainer saved."""
        return self._conversation.model

    @property
    def failed_at(self) -> float:
        """When the first rank said that it failed, or the last process was gone (monotonic)."""
        return self._conversation.failed_at or self._ended_at or time.monotonic()

    @property
    def oom_snapshot(self) -> SavedFile | None:
        """What the GPU's allocator looked like when memory ran out."""
        return self._conversation.oom_snapshot

    def run(self) -> Ending:
        """Until the last process is gone and all it said is read."""
        self._watch(self._requests.fileno(), self._hear_requests)
        self._watch(self._socket.listener, self._accept)
        self._watch(self._tree.lifeline, self._hear_launcher)
        for stream in self._open_streams:
            is_stderr = stream in self._stderr.values()
            self._watch(stream.descriptor, partial(self._read_output, stream), _STDERR if is_stderr else _STDOUT)
        if self._tree.agent.connection is not None:
            self._watch(self._tree.agent.connection, self._hear_agent)
        try:
            while not self._tree.is_gone:
                self._turn(self._wait_s())
                self._check_limits()
            self._ended_at = time.monotonic()
            self._drain()
        finally:
            self._selector.close()
            for output in self._outputs:
                output.close()
            for connection in self._connections:
                connection.close()
        return self._ending()

    def _watch(self, file: int | socket.socket, handler: Callable[[], None], turn: int = 0) -> None:
        self._selector.register(file, selectors.EVENT_READ, (turn, handler))

    def _wait_s(self) -> float:
        deadlines = [time.monotonic() + TICK_S]
        deadlines += [at for at in (self._conversation.merge_at, self._kill_at) if at is not None]
        return max(0.0, min(deadlines) - time.monotonic())

    def _turn(self, timeout_s: float) -> None:
        for _, handler in sorted((key.data for key, _ in self._selector.select(timeout_s)), key=itemgetter(0)):
            handler()
        self._conversation.merge_when_due()
        self._narrator.tell_dropped()

    # What the trainer says

    def _accept(self) -> None:
        for connection in self._socket.accept(self._tree.launcher, MAX_CONNECTIONS - len(self._connections)):
            self._connections.add(connection)
            self._watch(connection, partial(self._read_packets, connection), _PACKETS)

    def _read_packets(self, connection: socket.socket) -> None:
        for packet in packets(connection):
            if packet is None:
                self._selector.unregister(connection)
                self._connections.discard(connection)
                connection.close()
                return
            self._conversation.take(read(packet))

    def _read_output(self, stream: OutputStream) -> None:
        """Lines to the log, raw bytes to the log file: what the event log drops in a flood is kept there."""
        for level, line in stream.read():
            self._narrator.log(level, line)
        if stream.is_closed:
            self._selector.unregister(stream.descriptor)
            self._open_streams.discard(stream)

    # What the platform says

    def _hear_requests(self) -> None:
        for cut in self._requests.take():
            self._end(cut, None)
        if self._hear is not None:
            self._hear()

    def _hear_launcher(self) -> None:
        if not self._tree.hear_launcher():
            # Without its last word: killed. The agent ends what it leaves behind and says when that is gone.
            self._selector.unregister(self._tree.lifeline)
            if not self._tree.is_gone:
                self._end(Cut.PLATFORM, JobError(type="platform", message="the attempt's launcher was killed"))
                self._kill_at = time.monotonic() + STRAYS_GONE_S

    def _hear_agent(self) -> None:
        connection = self._tree.agent.connection
        packet = self._tree.agent.read()
        if packet is None:
            if connection is not None:
                self._selector.unregister(connection)
            self._agent_lost = True
            return
        if packet.get("nudge"):
            self._wake_lease()
        if packet.get("drain"):
            self._end(Cut.DRAINED, None)
        if packet.get("gone"):
            self._tree.hear_launcher()  # its last word may wait beside the agent's
            if not self._tree.launcher_is_alive:
                self._tree.is_gone = True

    def _check_limits(self) -> None:
        now = time.monotonic()
        self._oom_kills.look()
        if self._agent_lost and self._tree.find_agent_again(0.0) and self._tree.agent.connection is not None:
            self._agent_lost = False
            self._watch(self._tree.agent.connection, self._hear_agent)
        failed_at = self._conversation.failed_at
        if self._kill_at is None and self._has_others and failed_at and now - failed_at > FAILED_ENDS_WITHIN_S:
            self._kill_at = now
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_now()
        if self._tree.is_stuck:
            self._tree.is_gone = True  # it can't die (D state): the job goes on, its GPUs are quarantined
        if self.cut is None:
            broken = self._limits.broken() if self._awaits_reports else None
            if broken is not None:
                self._end(*broken)
            elif boottime_s() > self._tree.licence_until:
                self._end(Cut.LICENCE, None)

    def _kill_now(self) -> None:
        if self._tree.launcher_is_alive:
            self._kill_at = time.monotonic() + 1.0
            self._tree.kill()
        elif self._agent_lost or self.cut is Cut.PLATFORM:
            # No kill switch is left to tell: the trainer died with its launcher, strays with the next agent's start.
            self._tree.is_gone = True

    def _end(self, cut: Cut, error: JobError | None) -> None:
        """Ends the attempt, once; a lost lease overrides every other reason."""
        if self.cut is not None and cut is not Cut.LEASE_LOST:
            return
        self.cut, self.cut_error = cut, error
        if self._on_cut is not None:
            self._on_cut(cut)
        match cut:
            case Cut.GANG if self._spec.stall_timeout_s is not None:
                self._limits.tell_stacks()  # the other hosts may have ended because all were silent
                self._kill_at = time.monotonic()
            case Cut.STOPPED | Cut.DRAINED:
                if cut is Cut.STOPPED:
                    self._narrator.state.ask_stop()
                    self._narrator.progress()
                self._tree.ask_to_stop()
                self._kill_at = time.monotonic() + self._settings.stop_grace_s
            case _:
                self._kill_at = time.monotonic()

    # The end

    def _drain(self) -> None:
        """Reads what is left in pipes and sockets: everybody who could write is gone."""
        deadline = time.monotonic() + DRAIN_AFTER_EXIT_S
        self._accept()
        while (self._open_streams or self._connections) and time.monotonic() < deadline:
            self._turn(0.05)
        self._narrator.close_epoch()

    def _ending(self) -> Ending:
        code = self._tree.exit_code
        if self.cut is None and self._tree.cut_by_licence:
            self.cut = Cut.LICENCE
        if self.cut is Cut.GANG and self._tree.ended_by_itself:
            self.cut = None  # it had failed before it could be killed, and may be the one to blame
        job = self._narrator.state.job
        exit_error = None
        if code != 0:
            stderr = self._stderr.get(self._tree.exit_rank)
            exit_error = from_exit(
                code if code is not None else -signal.SIGKILL,
                kernel_killed=code in (-signal.SIGKILL, None) and self._oom_kills.has_killed(self._tree.trainers),
                epoch=job.current_epoch or None,
                rank=self._tree.exit_rank,
                last_lines=tuple(stderr.last_lines) if stderr is not None else (),
            )
        return Ending(
            exit_code=code,
            cut=self.cut,
            cut_error=self._located(self.cut_error),
            failure=self._located(self._first_failure(exit_error)),
            exit_error=self._located(exit_error),
            finished_all_epochs=job.current_epoch >= job.total_epochs,
        )

    def _first_failure(self, exit_error: JobError | None) -> JobError | None:
        """What the rank that is to blame said of itself; None where it could say nothing. The others' go to the log."""
        told = self._conversation.failures
        known = list(told)
        if exit_error is not None and self.cut is None and all(error.rank != exit_error.rank for error in told):
            known.append(exit_error)
        cause = cause_of(known)
        for error in told:
            if error is not cause:
                line = f"rank {error.rank} then failed too: {error.message}"
                self._narrator.log("WARNING", line)
        return None if cause is None or cause is exit_error else with_kills(cause, self._oom_kills)

    def _located(self, error: JobError | None) -> JobError | None:
        if error is None:
            return None
        job = self._narrator.state.job
        known = {"host": self._settings.host_name, "epoch": error.epoch or job.current_epoch or None}
        return error.model_copy(update=known)
