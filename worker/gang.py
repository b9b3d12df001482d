"""Member 0's side of an attempt on several hosts: sees how the others stand, tells them to end, hears what they say."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import structlog

from epochcast.jobs import JobError
from shared.attempt import AttemptRecord, LeaseLost, StoredFile
from shared.claims import Claim
from shared.database import DatabaseUnavailable
from shared.gang_record import GangRecord, MemberMessage, MemberState
from worker.connections import Connections
from worker.courier import read_row
from worker.gang_ending import Combined, combine
from worker.narrator import Narrator
from worker.outcome import Cut, Ending
from worker.requests import Requests
from worker.shards import StoredShard, from_json

logger = structlog.get_logger(__name__)

LOOK_S = 1.0
GATHER_LOOK_S = 0.2
OUTAGE_S = 60.0
_ENDED_WELL = ("succeeded", "stopped")


class Gang:
    """A thread watches the others while the ranks of this host train; after their end `gather` waits for all.

    What the others say is handed to the supervisor's loop (`requests.wake`, `deliver`): the log has one writer.
    """

    def __init__(
        self,
        connections: Connections,
        claimed: Claim,
        record: AttemptRecord,
        narrator: Narrator,
        requests: Requests,
        take_shard: Callable[[StoredShard], None],
    ) -> None:
        """`take_shard` is given what other hosts have stored of sharded checkpoints."""
        self._connections = connections
        self._job_id = claimed.job.job_id
        self._others = [host.name for host in claimed.job.hosts[1:]]
        self._gang = GangRecord(connections.database, self._job_id, claimed.job.generation)
        self._record = record
        self._narrator = narrator
        self._requests = requests
        self._take_shard = take_shard
        self._taken: dict[int, int] = {}
        self._waiting: deque[dict[str, Any]] = deque()
        self._states: list[MemberState] = []
        self._order: str | None = None
        self._asked: Cut | None = None
        self._woken = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="gang", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Another host says that there is news."""
        self._woken.set()

    def stop(self) -> None:
        self._ending = True
        self._woken.set()
        if self._thread.ident is not None:
            self._thread.join()

    def on_cut(self, cut: Cut) -> None:
        """This host's ranks are being ended: the others' end with them. Callable from the supervisor's loop."""
        # A stop stands in the job's own row, where each member finds it.
        if cut is Cut.DRAINED:
            self._order = self._order or "drain"
        elif cut is not Cut.STOPPED:
            self._order = "kill"
        self._woken.set()

    def deliver(self) -> None:
        """What the others said since, into the job's log. For whoever owns the narrator."""
        while self._waiting:
            message = self._waiting.popleft()
            match message:
                case {"type": "log", "level": level, "message": line}:
                    self._narrator.log(level, line)

    def gather(self, ending: Ending, failed_at: float, is_draining: Callable[[], bool], until: float) -> Ending:
        """Waits until every host's part is over, and says what ended the attempt, all things known.

        `failed_at`: when this host's first rank failed (monotonic). `is_draining`: whether this worker shuts down by
        now. `until`: when the attempt's time is over (monotonic). Raises LeaseLost, DatabaseUnavailable.
        """
        self.stop()
        if ending.cut is Cut.DRAINED:
            self._order = self._order or "drain"
        elif ending.cut is not Cut.STOPPED and (ending.cut is not None or ending.exit_code != 0):
            self._order = "kill"
        available_at = time.monotonic()
        while True:
            try:
                said = self._look()
                self.deliver()
                available_at = time.monotonic()
                if not said and all(state.is_gone for state in self._states[1:]):
                    combined = combine(ending, self._by_the_databases_clock(failed_at), self._states[1:])
                    break
            except DatabaseUnavailable as error:
                if time.monotonic() - available_at > OUTAGE_S:
                    raise
                logger.warning("the other hosts can't be seen: SQL is away", error=str(error))
            if self._requests.has(Cut.LEASE_LOST):
                raise LeaseLost(f"job {self._job_id}: while its other hosts ended")
            if is_draining() and self._order is None:
                self._order = "drain"
            if time.monotonic() > until and self._order != "kill":
                self._order = "kill"
                message = "its other hosts ran for longer than max_runtime_s"
                ending = replace(ending, cut=Cut.TIMEOUT, cut_error=JobError(type="timeout", message=message))
            time.sleep(GATHER_LOOK_S)
        self._tell_the_rest(combined)
        return combined.ending

    def _by_the_databases_clock(self, moment: float) -> float:
        """A monotonic moment of this process by the database's clock."""
        with self._connections.database.read() as connection:
            return self._connections.database.time(connection) - (time.monotonic() - moment)

    def _tell_the_rest(self, combined: Combined) -> None:
        for host, error in combined.consequences:
            rank = f"rank {error.rank}" if error.rank is not None else "a rank"
            self._narrator.log("WARNING", f"{rank} on {host} then failed too: {error.message}")

    def _run(self) -> None:
        while not self._ending:
            try:
                self._look()
                self._judge()
            except DatabaseUnavailable as error:
                logger.warning("the other hosts can't be seen: SQL is away", error=str(error))
            except LeaseLost:
                self._requests.ask(Cut.LEASE_LOST)
                return
            except Exception:
                logger.exception("the watch over the other hosts failed")
                self._requests.ask(Cut.PLATFORM)
                return
            self._woken.wait(LOOK_S)
            self._woken.clear()

    def _look(self) -> bool:
        """One look at the record, with what has to be told. Returns whether anything was said."""
        self._states, said = self._gang.look(self._taken)
        for one in said:
            messages = read_row(one.payload)
            for message in messages:
                if message["type"] == "shard":  # once more after an outage: a part that is known is passed over
                    self._take_shard(from_json(message["shard"]))
                if message["type"] == "file":  # once more after an outage: it is entered by its key
                    self._record.add_artifact(StoredFile(**message["file"]))
            self._waiting.extend(messages)
            self._taken[one.member] = one.seq
        if said:
            self._requests.wake()
            self._gang.forget(_newest(said))
        if any(_broke(state) for state in self._states[1:]):
            self._order = "kill"
        elif self._order is None and any(state.draining for state in self._states[1:]):
            self._order = "drain"
        if self._order is not None and self._gang.order(self._order):
            self._connections.nudge(self._job_id, self._others)
        return bool(said)

    def _judge(self) -> None:
        """Ends this host's ranks when another host's part has ended before its time."""
        others = self._states[1:]
        cut: Cut | None = None
        if any(_broke(state) for state in others):
            cut = Cut.GANG
        elif any(state.draining or state.outcome == Cut.DRAINED for state in others):
            cut = Cut.DRAINED
        if cut is not None and cut is not self._asked:
            self._asked = cut
            self._requests.ask(cut)


def _broke(state: MemberState) -> bool:
    """Whether a member's part is over, and not as it should be."""
    return state.is_gone and state.outcome not in (*_ENDED_WELL, Cut.DRAINED)


def _newest(said: list[MemberMessage]) -> list[MemberMessage]:
    return list({one.member: one for one in said}.values())
