"""The hosts of the fleet in the record: registration, heartbeat, and what `GET /hosts` shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from shared.database import Database
from shared.errors import HostNameTaken, HostNotFound
from shared.rows import moment
from shared.stalls import on_hosts, training_by_host
from shared.tables import gpus, hosts, placements

UNREACHABLE_AFTER_S = 15.0
EMPTY_BELOW = 0.05


@dataclass(frozen=True, slots=True)
class GpuState:
    """One GPU as its host sees it now. `users`: pids with memory on it that are not ours."""

    uuid: str
    index: int
    name: str
    total_bytes: int
    used_bytes: int
    utilisation: int | None = None
    users: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class HostState:
    """One host as its agent reports it."""

    name: str
    instance: str
    boot_id: str
    pid_namespace: str
    slots: int
    cpus: int
    memory_total_bytes: int
    memory_used_bytes: int
    cpu_percent: float | None = None
    reads_store: bool = True
    versions: dict[str, str] = field(default_factory=dict)
    gpus: Sequence[GpuState] = ()


class Fleet:
    """Writes by agents, reads by everybody. Methods raise DatabaseUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def register(self, state: HostState, taken_for_s: float, is_alive: Callable[[str], bool]) -> None:
        """Enters a host, or takes its row over from an instance that is gone. Raises HostNameTaken.

        An instance of another machine is gone when it was silent for `taken_for_s`; for one of this machine (same boot
        and PID namespace) `is_alive` says so at once.
        """
        with self.database.write() as connection:
            now = self.database.time(connection)
            known = connection.execute(
                sa.select(hosts).where(hosts.c.name == state.name).with_for_update()
            ).one_or_none()
            if known is not None and known.instance != state.instance:
                age_s = now - known.heartbeat_at
                same_machine = known.boot_id == state.boot_id and known.pid_namespace == state.pid_namespace
                if is_alive(known.instance) if same_machine else age_s < taken_for_s:
                    raise HostNameTaken(state.name, age_s)
            values = self._values(state) | {"registered_at": now, "heartbeat_at": now}
            if known is None:
                connection.execute(hosts.insert().values(name=state.name, draining=False, **values))
            else:
                connection.execute(hosts.update().where(hosts.c.name == state.name).values(**values))
            self._store_gpus(connection, state, begins=True)

    def heartbeat(self, state: HostState) -> bool:
        """Renews a host's row. False: another instance has taken the name, and this one must end; or it has left."""
        with self.database.write() as connection:
            now = self.database.time(connection)
            # Not of a host that has left: a heartbeat that was under way would make it look ready once more.
            mine = sa.and_(hosts.c.name == state.name, hosts.c.instance == state.instance, hosts.c.heartbeat_at > 0)
            values = self._values(state) | {"heartbeat_at": now}
            if connection.execute(hosts.update().where(mine).values(**values)).rowcount == 0:
                return False
            self._store_gpus(connection, state)
            return True

    def leave(self, name: str, instance: str) -> None:
        """A host ends in order: shown as unreachable at once, its name free."""
        with self.database.write() as connection:
            mine = sa.and_(hosts.c.name == name, hosts.c.instance == instance)
            connection.execute(hosts.update().where(mine).values(heartbeat_at=0.0))

    @staticmethod
    def _values(state: HostState) -> dict[str, Any]:
        return {
            "instance": state.instance,
            "boot_id": state.boot_id,
            "pid_namespace": state.pid_namespace,
            "slots": state.slots,
            "cpus": state.cpus,
            "cpu_percent": state.cpu_percent,
            "memory_total_bytes": state.memory_total_bytes,
            "memory_used_bytes": state.memory_used_bytes,
            "versions": state.versions,
            "reads_store": state.reads_store,
        }

    @staticmethod
    def _store_gpus(connection: sa.Connection, state: HostState, *, begins: bool = False) -> None:
        # By uuid, as whoever places jobs takes them: two that lock the same rows must not do so in a circle.
        rows = [
            {
                "uuid": gpu.uuid,
                "host": state.name,
                "index": gpu.index,
                "name": gpu.name,
                "total_bytes": gpu.total_bytes,
                "used_bytes": gpu.used_bytes,
                "utilisation": gpu.utilisation,
                "users": list(gpu.users),
                "quarantined": False,
                "others_bytes": 0,
            }
            for gpu in sorted(state.gpus, key=lambda gpu: gpu.uuid)
        ]
        if rows:
            insert = sqlite.insert(gpus) if connection.dialect.name == "sqlite" else postgresql.insert(gpus)
            now = insert.excluded
            # Also by its memory: in a container the driver doesn't tell which processes are on the GPU.
            is_empty = sa.and_(sa.cast(now.users, sa.Text) == "[]", now.used_bytes < now.total_bytes * EMPTY_BELOW)
            seen_now: dict[str, Any] = {
                name: now[name] for name in rows[0] if name not in ("uuid", "quarantined", "others_bytes")
            }
            # Once it is empty, whatever would not die there is gone.
            seen_now["quarantined"] = sa.case((is_empty, sa.false()), else_=gpus.c.quarantined)
            # A job's GPU stays where the job was placed, should two hosts name the same one (two workers of a machine).
            ours = sa.or_(gpus.c.host == state.name, gpus.c.job_id.is_(None))
            stored = insert.values(rows).on_conflict_do_update(index_elements=["uuid"], set_=seen_now, where=ours)
            connection.execute(stored)
        seen = [gpu.uuid for gpu in state.gpus]
        gone = sa.and_(gpus.c.host == state.name, gpus.c.uuid.not_in(seen), gpus.c.job_id.is_(None))
        if not begins:
            # A driver that hangs shows none for a while; what was in quarantine must not come back as a new one.
            gone = sa.and_(gone, sa.not_(gpus.c.quarantined))
        connection.execute(gpus.delete().where(gone))

    def set_draining(self, name: str, draining: bool) -> None:
        """A draining host gets no new job. Raises HostNotFound."""
        with self.database.write() as connection:
            changed = connection.execute(hosts.update().where(hosts.c.name == name).values(draining=draining))
            if changed.rowcount == 0:
                raise HostNotFound(name)

    def hosts(self) -> list[dict[str, Any]]:
        """Every host as `GET /hosts` shows it, by name."""
        with self.database.read() as connection:
            return self._shown(connection, connection.execute(_BY_NAME).all())

    def host(self, name: str) -> dict[str, Any]:
        """One of them. Raises HostNotFound."""
        with self.database.read() as connection:
            found = self._shown(connection, connection.execute(_BY_NAME.where(hosts.c.name == name)).all(), [name])
        if not found:
            raise HostNotFound(name)
        return found[0]

    def page(
        self, limit: int, after: str | None = None, job_id: int | None = None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """`limit` hosts behind the one called `after`, and what `after` is for the next page (None: there is none).

        `job_id`: only those on which this job has a place.
        """
        wanted = _BY_NAME.limit(limit + 1)
        if after is not None:
            wanted = wanted.where(hosts.c.name > after)
        if job_id is not None:
            wanted = wanted.where(hosts.c.name.in_(sa.select(placements.c.host).where(placements.c.job_id == job_id)))
        with self.database.read() as connection:
            rows = connection.execute(wanted).all()
            items = self._shown(connection, rows[:limit], [row.name for row in rows[:limit]])
        return items, items[-1]["name"] if len(rows) > limit else None

    def reachable(self) -> list[str]:
        """The names of those that live."""
        with self.database.read() as connection:
            lives = hosts.c.heartbeat_at >= self.database.now - UNREACHABLE_AFTER_S
            return list(connection.execute(sa.select(hosts.c.name).where(lives).order_by(hosts.c.name)).scalars())

    def _shown(
        self, connection: sa.Connection, rows: Sequence[Any], names: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """`status` is `ready`, `draining` or `unreachable`; sizes in GiB. `names`: of `rows`, where these aren't all.

        The heartbeat says that the host lives, `training` that its jobs get on: each can fail without the other.
        """
        now = self.database.time(connection)
        jobs_on, slots_used = _held(connection, names)
        cards_of = _cards(connection, names)
        training = training_by_host(connection, now, names)
        return [
            {
                "name": row.name,
                "status": status_of(row.heartbeat_at, row.draining, now),
                "slots": {"total": row.slots, "used": slots_used.get(row.name, 0)},
                "cpu": {"cores": row.cpus, "percent": row.cpu_percent},
                "memory": {"total_gib": _gib(row.memory_total_bytes), "used_gib": _gib(row.memory_used_bytes)},
                "gpus": cards_of.get(row.name, []),
                "jobs": sorted(jobs_on.get(row.name, [])),
                "training": training.get(row.name, []),
                "versions": row.versions,
                "registered_at": moment(row.registered_at),
                "heartbeat_at": moment(row.heartbeat_at) if row.heartbeat_at else None,
                "heartbeat_age_s": round(max(0.0, now - row.heartbeat_at), 1) if row.heartbeat_at else None,
            }
            for row in rows
        ]


def status_of(heartbeat_at: float, draining: bool, now: float) -> str:
    """`ready`, `draining` or `unreachable`."""
    if now - heartbeat_at > UNREACHABLE_AFTER_S:
        return "unreachable"
    return "draining" if draining else "ready"


_BY_NAME = sa.select(hosts).order_by(hosts.c.name)


def _held(connection: sa.Connection, names: Sequence[str] | None) -> tuple[dict[str, list[int]], dict[str, int]]:
    """By host, what is placed there, and how many of those take a slot."""
    columns = (placements.c.host, placements.c.job_id, sa.cast(placements.c.gpus, sa.Text) == "[]")
    jobs_on: dict[str, list[int]] = {}
    slots_used: dict[str, int] = {}
    for host, job_id, on_a_slot in connection.execute(on_hosts(sa.select(*columns), placements.c.host, names)):
        jobs_on.setdefault(host, []).append(job_id)
        if on_a_slot:
            slots_used[host] = slots_used.get(host, 0) + 1
    return jobs_on, slots_used


def _cards(connection: sa.Connection, names: Sequence[str] | None) -> dict[str, list[dict[str, Any]]]:
    columns = ("host", "index", "uuid", "name", "total_bytes", "used_bytes", "utilisation", "job_id", "quarantined")
    # As text: of eighty thousand GPUs most have no users but ours, and to read that as JSON took a fifth of the time.
    users = sa.cast(gpus.c.users, sa.Text)
    wanted = sa.select(*(gpus.c[name] for name in columns), users).order_by(gpus.c.host, gpus.c.index)
    found: dict[str, list[dict[str, Any]]] = {}
    for host, index, uuid, name, total, used, utilisation, job_id, quarantined, others in connection.execute(
        on_hosts(wanted, gpus.c.host, names)
    ):
        card = {
            "index": index,
            "uuid": uuid,
            "name": name,
            "memory": {"total_gib": _gib(total), "used_gib": _gib(used)},
            "utilisation_percent": utilisation,
            "job_id": job_id,
            "users": [] if others == "[]" else orjson.loads(others),
            "quarantined": quarantined,
        }
        found.setdefault(host, []).append(card)
    return found


def _gib(size: int) -> float:
    return round(size / 2**30, 2)
