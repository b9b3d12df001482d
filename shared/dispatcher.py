"""The loop that keeps jobs moving: reaps, places, pokes and announces; a thread in every gateway and every agent.

Correct with any number of them at once: each step is a conditional write, and a message is only a hint. So that a large
fleet's dispatchers don't all do the same work each second, they take turns; whoever is woken doesn't wait for one.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import redis
import sqlalchemy as sa
import structlog
from kombu.exceptions import OperationalError

from epochcast.jobs import Status
from shared.announcer import Announcer
from shared.celery_app import Poker
from shared.database import Database, DatabaseUnavailable
from shared.event_log import EventLog
from shared.placement import Rules, place_in_parts
from shared.recovery import AVOID_S, Recovery, waits_for_others
from shared.reserving import FIRST_POKE_S
from shared.settings import Settings
from shared.tables import jobs, placements
from shared.turns import LAME_PASS, Turns

logger = structlog.get_logger(__name__)

TICK_S = 1.0
# A clock that is read a little early must not cost a whole tick.
TURN_S = 0.9 * TICK_S
FORECAST_S = 5.0
POKE_LIMIT_S = 60.0
UNCLAIMED_S = 120.0


@dataclass(frozen=True, slots=True)
class _Due:
    job_id: int
    host: str
    pokes: int


class Dispatcher:
    """Runs until `stop`; `wake` makes the next pass happen now. Never raises into its owner.

    `rest_s`: how long it rests at most while others take the turns. A thousand hosts' agents need not all look each
    second whether the gateways are still there.
    """

    def __init__(
        self, settings: Settings, database: Database, event_log: EventLog, poker: Poker, *, rest_s: float = TICK_S
    ) -> None:
        self._settings = settings
        self._database = database
        self._recovery = Recovery(database)
        self._announcer = Announcer(database, event_log)
        self._poker = poker
        self._turns = Turns(database, TURN_S)
        self._lame_turns = Turns(database, TURN_S, LAME_PASS)
        self._rest_limit_s = rest_s
        self._rest_s = TICK_S
        self._has_failed = False
        self._forecast_at = 0.0
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self.passes = 0

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something changed (a submission, a release): look now. Callable from any thread; returns at once."""
        self._woken.set()

    def stop(self, timeout_s: float = 10.0) -> None:
        self._stopping = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        was_woken = False
        while not self._stopping:
            if was_woken or self._is_my_turn():
                self.run_once()
                self._rest_s = TICK_S
            else:
                self.passes += 1
                # Not in step with the others who rest.
                self._rest_s = min(self._rest_limit_s, self._rest_s + TICK_S * random.random())
            was_woken = self._woken.wait(self._rest_s)
            if was_woken:
                self._woken.clear()
                # Whoever woke it waits for a place; what other jobs need can come after that.
                self._take(self._place, self._poke)

    def _is_my_turn(self) -> bool:
        """Who can't do its work (its way to Redis is broken) takes no turn from those who can. It goes on trying, in
        turn with the others who can't: with Redis gone a thousand agents would each make a pass a second."""
        try:
            return (self._lame_turns if self._has_failed else self._turns).take()
        except DatabaseUnavailable:
            return True  # the pass says so
        except Exception:
            logger.exception("dispatcher: no turn taken")
            return True

    def run_once(self) -> None:
        """One pass. An outage of SQL or Redis ends a step, not the loop: the next pass tries again."""
        self._has_failed = not self._take(
            self._reap,
            self._finish_stopped,
            self._release_unclaimed,
            self._place,
            self._poke,
            self._announce,
        )
        self.passes += 1

    def _take(self, *steps: Callable[[], None]) -> bool:
        """Whether every step was done."""
        all_done = True
        for step in steps:
            if self._stopping:
                return False
            try:
                step()
                continue
            except DatabaseUnavailable as error:
                logger.warning("dispatcher: SQL is away", step=step.__name__, error=str(error))
                return False
            except (redis.RedisError, OperationalError, OSError) as error:
                logger.warning("dispatcher: Redis is away", step=step.__name__, error=str(error))
            except Exception:
                # A fault in one step must not end placing, reaping and announcing for everybody.
                logger.exception("dispatcher: step failed", step=step.__name__)
            all_done = False
        return all_done

    def _reap(self) -> None:
        for job_id in self._recovery.reap():
            logger.warning("job taken back: its lease ran out", job_id=job_id)

    def _finish_stopped(self) -> None:
        self._recovery.stop_requested_queued()

    def _place(self) -> None:
        now = time.monotonic()
        forecasts = now - self._forecast_at >= FORECAST_S
        rules = Rules(self._settings.running_per_owner, self._settings.reserve_after_s, forecasts)
        for placed in place_in_parts(self._database, rules):
            for one in placed:
                logger.info("job placed", job_id=one.job_id, host=one.host)
            self._send([_Due(one.job_id, one.host, 0) for one in placed])
        if forecasts:
            self._forecast_at = now

    def _poke(self) -> None:
        """Sends the hint again for every placed job that nobody claimed yet: after 5 s, doubling to 60."""
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(placements.c.job_id, placements.c.host, placements.c.pokes)
                .join(jobs, jobs.c.id == placements.c.job_id)
                .where(
                    jobs.c.status == Status.QUEUED,
                    placements.c.next_poke_at <= self._database.now,
                    sa.not_(waits_for_others(self._database.now)),
                )
                .order_by(placements.c.next_poke_at)
                .limit(200)
            )
            due = [_Due(row.job_id, row.host, row.pokes) for row in rows]
        for number, one in enumerate(due, 1):
            if self._take_poke(one):
                try:
                    self._send([one])
                except (OperationalError, OSError):
                    self._put_off(due[number:])
                    raise

    def _send(self, taken: list[_Due]) -> None:
        """The pokes that this dispatcher has taken."""
        for sent, one in enumerate(taken):
            try:
                self._poker.poke(one.job_id, one.host)
            except (OperationalError, OSError):
                # Their time in the queue of a broker that is away doesn't count against the hosts.
                for left in taken[sent:]:
                    self._restore_poke(left)
                raise

    def _put_off(self, due: list[_Due]) -> None:
        """The same for those who would have been next: one try tells of all that the broker is away."""
        these = sa.tuple_(placements.c.job_id, placements.c.host).in_([(one.job_id, one.host) for one in due])
        with self._database.write() as connection:
            now = self._database.time(connection)
            connection.execute(placements.update().where(these).values(next_poke_at=now + TICK_S, placed_at=now))

    def _take_poke(self, one: _Due) -> bool:
        """Of several dispatchers one sends each poke."""
        delay_s = min(POKE_LIMIT_S, FIRST_POKE_S * 2**one.pokes)
        with self._database.write() as connection:
            mine = sa.and_(
                placements.c.job_id == one.job_id, placements.c.host == one.host, placements.c.pokes == one.pokes
            )
            taken = connection.execute(
                placements.update().where(mine).values(pokes=one.pokes + 1, next_poke_at=self._database.now + delay_s)
            )
            return taken.rowcount == 1

    def _restore_poke(self, one: _Due) -> None:
        with self._database.write() as connection:
            now = self._database.time(connection)
            connection.execute(
                placements.update()
                .where(placements.c.job_id == one.job_id, placements.c.host == one.host)
                .values(pokes=one.pokes, next_poke_at=now + TICK_S, placed_at=now)
            )

    def _release_unclaimed(self) -> None:
        """Takes a placement back that was not claimed in 120 s, and prefers other hosts for 10 minutes.

        Of several hosts one that didn't come is enough: all are released, so that none waits in vain.
        """
        with self._database.read() as connection:
            unclaimed = sa.and_(
                jobs.c.status == Status.QUEUED,
                placements.c.placed_at < self._database.now - UNCLAIMED_S,
                sa.not_(waits_for_others(self._database.now)),
            )
            rows = connection.execute(
                sa.select(placements.c.job_id, placements.c.host, jobs.c.generation)
                .join(jobs, jobs.c.id == placements.c.job_id)
                .where(unclaimed)
            ).all()
        for row in rows:
            if self._recovery.release_placement(row.job_id, row.generation, row.host, AVOID_S):
                logger.warning("placement released: not claimed in time", job_id=row.job_id, host=row.host)

    def _announce(self) -> None:
        self._announcer.run()
