"""A fleet in the record without any machine: hosts, GPUs, what runs on them, and a queue."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from epochcast.jobs import Resources, TrainingJobSpec
from shared import database as database_module
from shared.database import Database
from shared.tables import attempts, gpus, hosts, jobs, placements
from tests.postgres import PostgresServer

GPUS = 8
SLOTS = 2
CARD_BYTES = 80 * 2**30
# What waits: mostly small, some whole hosts, some pairs of them, as (weight, spec).
MIX: tuple[tuple[int, dict[str, Any]], ...] = (
    (70, {"gpus": 1}),
    (10, {"gpus": 8}),
    (5, {"gpus": 8, "nodes": 2}),
    (5, {"gpus": 4, "gpu_memory_gib": 60.0}),
    (5, {"gpus": 1, "max_runtime_s": 3600.0}),
    (5, {}),
)
_AT_ONCE = 5_000


@contextmanager
def opened(kind: str, folder: Path, server: PostgresServer, name: str, connections: int = 4) -> Iterator[Database]:
    """A fresh, migrated database of either kind."""
    url = f"sqlite:///{folder}/{name}.db" if kind == "SQLite" else server.create_database(name)
    database_module.upgrade(url)
    # Patience: here a lock is waited for, and what it costs is measured.
    database = Database(url, patience_s=120, connections=connections)
    try:
        yield database
    finally:
        database.close()
        if kind != "SQLite":
            server.drop_database(name)


@dataclass(frozen=True, slots=True)
class Filled:
    running: list[int]
    """Ids of the running jobs, those with a GPU first."""


def fill(database: Database, host_count: int, queued: int, *, busy: bool, seed: int = 0) -> Filled:
    """`busy`: every GPU and slot is held by a running job of its own, most of them with a known end."""
    chance = random.Random(seed)
    with database.write() as connection:
        now = database.time(connection)
        names = [f"host-{number:05}" for number in range(host_count)]
        # Beyond the benchmark's end: nobody beats for these hosts.
        beat = now + 86_400
        insert(connection, hosts, [_host(name, beat) for name in names])
        cards = [_card(name, index) for name in names for index in range(GPUS)]
        insert(connection, gpus, cards)
        _queue(connection, now, queued, chance)
        running = _run_everywhere(connection, now, names, chance) if busy else []
    with database.engine.connect() as plain:
        plain.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("ANALYZE")
    return Filled(running)


def insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    for first in range(0, len(rows), _AT_ONCE):
        connection.execute(table.insert(), rows[first : first + _AT_ONCE])


def _host(name: str, beat: float) -> dict[str, Any]:
    return {
        "name": name,
        "instance": name,
        "boot_id": "boot",
        "pid_namespace": "namespace",
        "slots": SLOTS,
        "cpus": 64,
        "memory_total_bytes": 2**40,
        "memory_used_bytes": 2**39,
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "registered_at": beat,
        "heartbeat_at": beat,
    }


def _card(host: str, index: int) -> dict[str, Any]:
    return {
        "uuid": f"GPU-{host}-{index}",
        "host": host,
        "index": index,
        "name": "H100",
        "total_bytes": CARD_BYTES,
        "used_bytes": 2**29,
    }


def job(now: float, wanted: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One row of `jobs`."""
    resources = {name: value for name, value in wanted.items() if name in Resources.model_fields}
    others = {name: value for name, value in wanted.items() if name not in resources}
    spec = TrainingJobSpec.model_validate({"recipe": "image-classifier", "resources": resources, **others})
    common = {"owner": "alice", "name": "job", "status": "queued", "total_epochs": 100, "generation": 1, "attempt": 0}
    common |= {"lease_until": 0.0, "eta_s": None, "expected_end_at": None, "started_at": None, "priority": 0}
    moments = {"created_at": now, "queued_at": now, "updated_at": now}
    return common | moments | {"spec": spec.model_dump(mode="json")} | more


def _queue(connection: sa.Connection, now: float, count: int, chance: random.Random) -> None:
    weights, kinds = zip(*MIX, strict=True)
    rows = [
        job(now - chance.random() * 7200, wanted, owner=f"user-{chance.randrange(50)}", priority=chance.randrange(3))
        for wanted in chance.choices(kinds, weights, k=count)
    ]
    insert(connection, jobs, rows)


def _run_everywhere(connection: sa.Connection, now: float, names: list[str], chance: random.Random) -> list[int]:
    seats: list[tuple[str, int | None]] = [(name, index) for name in names for index in range(GPUS)]
    seats += [(name, None) for name in names for _ in range(SLOTS)]
    rows = []
    for _, index in seats:
        eta_s = chance.random() * 86_400 if chance.random() < 0.8 else None
        end = None if eta_s is None else now + eta_s
        more = {"status": "running", "lease_until": now + 86_400, "attempt": 1, "generation": 2, "started_at": now}
        rows.append(job(now, {"gpus": 1 if index is not None else 0}, eta_s=eta_s, expected_end_at=end, **more))
    insert(connection, jobs, rows)
    ids = list(connection.execute(sa.select(jobs.c.id).where(jobs.c.status == "running").order_by(jobs.c.id)).scalars())
    held = [(job_id, name, index) for job_id, (name, index) in zip(ids, seats, strict=True)]
    placed = [
        {
            "job_id": job_id,
            "member": 0,
            "host": name,
            "gpus": [] if index is None else [f"GPU-{name}-{index}"],
            "placed_at": now,
            "next_poke_at": now,
        }
        for job_id, name, index in held
    ]
    insert(connection, placements, placed)
    began = [
        {"job_id": job_id, "number": 1, "generation": 2, "host": name, "started_at": now} for job_id, name, _ in held
    ]
    insert(connection, attempts, began)
    # By the index rather than one by one: as many updates would take minutes on ten thousand hosts.
    mine = sa.select(placements.c.job_id).where(
        placements.c.host == gpus.c.host, sa.cast(placements.c.gpus, sa.Text) == '["' + gpus.c.uuid + '"]'
    )
    connection.execute(gpus.update().values(job_id=mine.scalar_subquery()))
    return ids
