"""The hosts of the fleet in the record: registration, heartbeat, and what `GET /hosts` shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from shared.database import Database
from shared.errors import HostNameTaken, HostNotFound
from shared.rows import moment
from shared.stalls import training_by_host
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
            self._store_gpus(connection, state)

    def heartbeat(self, state: HostState) -> bool:
        """Renews a host's row. False: another instance has taken the name, and this one must end."""
        with self.database.write() as connection:
            now = self.database.time(connection)
            mine = sa.and_(hosts.c.name == state.name, hosts.c.instance == state.instance)
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
    def _store_gpus(connection: sa.Connection, state: HostState) -> None:
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
            connection.execute(insert.values(rows).on_conflict_do_update(index_elements=["uuid"], set_=seen_now))
        seen = [gpu.uuid for gpu in state.gpus]
        gone = sa.and_(gpus.c.host == state.name, gpus.c.uuid.not_in(seen), gpus.c.job_id.is_(None))
        connection.execute(gpus.delete().where(gone))

    def set_draining(self, name: str, draining: bool) -> None:
        """A draining host gets no new job. Raises HostNotFound."""
        with self.database.write() as connection:
            changed = connection.execute(hosts.update().where(hosts.c.name == name).values(draining=draining))
            if changed.rowcount == 0:
                raise HostNotFound(name)

    def hosts(self) -> list[dict[str, Any]]:
        """Every host as `GET /hosts` shows it: `status` is `ready`, `draining` or `unreachable`; sizes in GiB.

        The heartbeat says that the host lives, `training` that its jobs get on: each can fail without the other.
        """
        with self.database.read() as connection:
            now = self.database.time(connection)
            rows = connection.execute(sa.select(hosts).order_by(hosts.c.name)).all()
            cards = connection.execute(sa.select(gpus).order_by(gpus.c.host, gpus.c.index)).all()
            placed = connection.execute(sa.select(placements)).all()
            training = training_by_host(connection, now)
        jobs_on: dict[str, list[int]] = {}
        slots_used: dict[str, int] = {}
        for placement in placed:
            jobs_on.setdefault(placement.host, []).append(placement.job_id)
            if not placement.gpus:
                slots_used[placement.host] = slots_used.get(placement.host, 0) + 1
        cards_of: dict[str, list[dict[str, Any]]] = {}
        for card in cards:
            cards_of.setdefault(card.host, []).append(_gpu(card))
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


def _gpu(card: Any) -> dict[str, Any]:
    values = card._mapping
    return {
        "index": values["index"],
        "uuid": values["uuid"],
        "name": values["name"],
        "memory": {"total_gib": _gib(values["total_bytes"]), "used_gib": _gib(values["used_bytes"])},
        "utilisation_percent": values["utilisation"],
        "job_id": values["job_id"],
        "users": values["users"],
        "quarantined": values["quarantined"],
    }


def _gib(size: int) -> float:
    return round(size / 2**30, 2)
