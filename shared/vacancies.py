"""What the record says of the fleet's room: what is free now, what there is at all, and when the rest gets free."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from epochcast.jobs import Status
from shared.fleet import UNREACHABLE_AFTER_S
from shared.seats import FreeGpu, FreeHost
from shared.tables import attempts, gpus, hosts, jobs, placements
from shared.waiting_reason import Capacity

# From the moment an attempt must end until its place is free: the grace, the last upload, the release.
ENDING_S = 60.0
# `placements.gpus` is a JSON list; of a job without GPUs it is empty.
_ON_A_SLOT = sa.cast(placements.c.gpus, sa.Text) == "[]"


@dataclass(frozen=True, slots=True)
class Busy:
    """A GPU or, without `uuid`, a slot that a job holds. `free_bytes`: of the GPU once the job has gone.

    `ends_at`: Unix seconds; infinite where nobody knows.
    """

    host: str
    uuid: str | None
    free_bytes: int
    ends_at: float


def free_hosts(connection: sa.Connection, now: float) -> list[FreeHost]:
    """Reachable hosts that take jobs, with their free slots and GPUs, by name."""
    alive = connection.execute(
        sa.select(hosts.c.name, hosts.c.slots, hosts.c.reads_store)
        .where(hosts.c.heartbeat_at >= now - UNREACHABLE_AFTER_S, sa.not_(hosts.c.draining))
        .order_by(hosts.c.name)
    )
    found = {name: FreeHost(name, slots, reads_store) for name, slots, reads_store in alive}
    taken = sa.select(placements.c.host, sa.func.count()).where(_ON_A_SLOT).group_by(placements.c.host)
    for host, count in connection.execute(taken):
        if host in found:
            found[host].slots -= count
    free_bytes = gpus.c.total_bytes - gpus.c.used_bytes
    cards = connection.execute(
        sa.select(gpus.c.host, gpus.c.uuid, free_bytes, gpus.c.name)
        .where(gpus.c.job_id.is_(None), sa.not_(gpus.c.quarantined))
        .order_by(free_bytes, gpus.c.index)
    )
    for host, uuid, size, model in cards:
        if host in found:
            found[host].gpus.append(FreeGpu(uuid, size, model))
    return list(found.values())


def capacity(connection: sa.Connection, names: Collection[str]) -> dict[str, Capacity]:
    """Of the hosts with these names."""
    sizes: dict[str, list[int]] = {}
    whole = sa.select(gpus.c.host, gpus.c.total_bytes).where(sa.not_(gpus.c.quarantined))
    for host, total in connection.execute(whole):
        sizes.setdefault(host, []).append(total)
    slots = connection.execute(sa.select(hosts.c.name, hosts.c.slots))
    return {name: Capacity(count, sizes.get(name, ())) for name, count in slots if name in names}


def busy(connection: sa.Connection, now: float) -> list[Busy]:
    """Everything that jobs hold, with the moment at which each is expected to end: by the pace of its epochs, and by
    `max_runtime_s` at the latest."""
    ends = _ends(connection, now)
    cards = connection.execute(
        sa.select(gpus.c.host, gpus.c.uuid, gpus.c.total_bytes - gpus.c.others_bytes, gpus.c.job_id).where(
            gpus.c.job_id.is_not(None), sa.not_(gpus.c.quarantined)
        )
    )
    found = [Busy(host, uuid, size, ends.get(job_id, math.inf)) for host, uuid, size, job_id in cards]
    slots = connection.execute(sa.select(placements.c.host, placements.c.job_id).where(_ON_A_SLOT))
    return found + [Busy(host, None, 0, ends.get(job_id, math.inf)) for host, job_id in slots]


def _ends(connection: sa.Connection, now: float) -> dict[int, float]:
    bound = jobs.c.spec["max_runtime_s"].as_string()
    attempt = sa.and_(attempts.c.job_id == jobs.c.id, attempts.c.number == jobs.c.attempt)
    rows = connection.execute(
        sa.select(
            jobs.c.id,
            jobs.c.status,
            jobs.c.eta_s,
            jobs.c.expected_end_at,
            jobs.c.updated_at,
            bound,
            attempts.c.started_at,
        )
        .outerjoin_from(jobs, attempts, attempt)
        .where(sa.exists().where(placements.c.job_id == jobs.c.id))
    )
    return {job_id: _ends_at(now, *facts) for job_id, *facts in rows}


def _ends_at(
    now: float, status: str, eta_s: float | None, expected: float | None, updated: float, bound: Any, began: float
) -> float:
    runs = status == Status.RUNNING
    latest = math.inf if bound is None else (began if runs else now) + float(bound) + ENDING_S
    if runs and eta_s is not None:
        # A worker of an older version writes no moment: then it is told from its last word.
        latest = min(latest, updated + eta_s if expected is None else expected)
    return max(latest, now)
