"""Member 0's side of an attempt on several hosts: sees how the others stand, tells them to end, hears what they say."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from epochcast.jobs import JobError, TrainingJobSpec
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


@dataclass(frozen=True, slots=True)
class Limit:
    """Until when (monotonic) other hosts may go on after this one has ended, and what it is called if they do."""

    until: float
    cut: Cut
    error: JobError


def limits_of(spec: TrainingJobSpec, began: float) -> list[Limit]:
    """Of an attempt that began then, and whose rank 0 has just ended: it reports nothing more."""
    found = []
    if spec.max_runtime_s is not None:
        error = JobError(type="timeout", message="its other hosts ran for longer than max_runtime_s")
        found.append(Limit(began + spec.max_runtime_s, Cut.TIMEOUT, error))
    if spec.stall_timeout_s is not None:
        error = JobError(type="stalled", message="its other hosts went on for stall_timeout_s after rank 0 had ended")
        found.append(Limit(time.monotonic() + spec.stall_timeout_s, Cut.STALLED, error))
    return found


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
        self._has_unforgotten = False
        self._begins: dict[str, object] = {}
        self._begins_here: tuple[object] | None = None
        self._waiting: deque[dict[str, Any]] = deque()
        self._states: list[MemberState] = []
        self._order: str | None = None
        self._asked: Cut | None = None
        self._woken = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="gang", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def begin_with(self, checkpoint: object) -> None:
        """Which checkpoint's artifact this host's ranks resume from; None: from none."""
        self._begins_here = (checkpoint,)
        self._woken.set()

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

    def gather(
        self, ending: Ending, failed_at: float, is_draining: Callable[[], bool], limits: Sequence[Limit] = ()
    ) -> Ending:
        """Waits until every host's part is over, and says what ended the attempt, all things known.

        `failed_at`: when this host's first rank failed (monotonic). `is_draining`: whether this worker shuts down by
        now. Raises LeaseLost, DatabaseUnavailable.
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
            broken = next((limit for limit in limits if time.monotonic() > limit.until), None)
            if broken is not None and self._order != "kill":
                self._order = "kill"
                ending = replace(ending, cut=broken.cut, cut_error=broken.error)
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
                if message["type"] == "begins":
                    self._begins[self._states[one.member].host] = message["from"]
                if message["type"] == "file":  # once more after an outage: it is entered by its key
                    self._record.add_artifact(StoredFile(**message["file"]))
            self._waiting.extend(messages)
            self._taken[one.member] = one.seq
        if said:
            self._has_unforgotten = True
            self._requests.wake()
        if self._has_unforgotten:  # also what an outage kept from being forgotten: a member waits until it is
            self._gang.forget([MemberMessage(member, seq, b"") for member, seq in self._taken.items()])
            self._has_unforgotten = False
        if any(_broke(state) for state in self._states[1:]):
            self._order = "kill"
        elif self._order is None and any(state.draining for state in self._states[1:]):
            self._order = "drain"
        if self._order is not None and self._gang.order(self._order):
            self._connections.nudge(self._job_id, self._others)
        return bool(said)

    def _other_beginnings(self) -> str:
        """Which hosts resume from another checkpoint than this one, in words; empty if none does."""
        if self._begins_here is None:
            return ""
        here = self._begins_here[0]
        others = [f"{host}: {_named(other)}" for host, other in self._begins.items() if other != here]
        return ", ".join([f"here: {_named(here)}", *others]) if others else ""

    def _judge(self) -> None:
        """Ends this host's ranks when another host's part has ended before its time."""
        others = self._states[1:]
        cut: Cut | None = None
        if any(_broke(state) for state in others):
            cut = Cut.GANG
        elif (different := self._other_beginnings()) and self._asked is None:
            # One host could not read what another could: each would train other epochs, or parts of two models.
            line = f"the hosts begin with different checkpoints ({different}); trying again"
            self._waiting.append({"type": "log", "level": "ERROR", "message": line})
            self._requests.wake()
            cut = Cut.PLATFORM
        elif any(state.draining or state.outcome == Cut.DRAINED for state in others):
            cut = Cut.DRAINED
        if cut is not None and cut is not self._asked:
            self._asked = cut
            self._requests.ask(cut)


def _named(checkpoint: object) -> str:
    return "none" if checkpoint is None else f"artifact {checkpoint}"


def _broke(state: MemberState) -> bool:
    """Whether a member's part is over, and not as it should be."""
    return state.is_gone and state.outcome not in (*_ENDED_WELL, Cut.DRAINED)
