"""What tests of the record have in common: specs, hosts, and a claim without a worker."""

import sqlalchemy as sa

from epochcast.jobs import Resources, TrainingJobSpec
from shared.attempt import AttemptRecord
from shared.claims import Claim, ProcessIdentity, claim
from shared.database import Database
from shared.fleet import Fleet, GpuState, HostState
from shared.placement import place
from shared.store import Store
from shared.tables import jobs

IDENTITY = ProcessIdentity("boot", "namespace", 1, 1)


def spec(total_epochs: int = 10, **fields: object) -> TrainingJobSpec:
    """`fields`: those of the spec, and of its resources."""
    resources = {name: fields.pop(name) for name in Resources.model_fields if name in fields}
    content = {"recipe": "image-classifier", "total_epochs": total_epochs, "resources": resources, **fields}
    return TrainingJobSpec.model_validate(content)


def create(store: Store, owner: str = "alice", **fields: object) -> int:
    """A queued job's number."""
    return store.create(spec(**fields), owner)[0].job_id  # type: ignore[arg-type]


def host_state(name: str = "host-1", slots: int = 2, gpus: int = 0, free_gib: float = 40.0) -> HostState:
    total = 80 * 2**30
    cards = tuple(
        GpuState(f"GPU-{name}-{index}", index, "Test GPU", total, total - int(free_gib * 2**30))
        for index in range(gpus)
    )
    return HostState(
        name=name,
        instance=f"{name}-instance",
        boot_id="boot",
        pid_namespace="namespace",
        slots=slots,
        cpus=4,
        memory_total_bytes=2**34,
        memory_used_bytes=2**33,
        gpus=cards,
    )


def add_host(database: Database, state: HostState) -> None:
    Fleet(database).register(state, 120, lambda instance: False)


def claim_placed(database: Database, job_id: int, host: str = "host-1", lease_s: float = 120) -> Claim:
    """Places what waits and claims one job."""
    place(database)
    claimed = claim(database, job_id, host, lease_s, 1, IDENTITY)
    assert claimed is not None
    return claimed


def record_of(database: Database, claimed: Claim, archive_limit_bytes: int = 2**20, kept: int = 2) -> AttemptRecord:
    return AttemptRecord(database, claimed, archive_limit_bytes=archive_limit_bytes, checkpoints_kept=kept)


def expire_lease(database: Database, job_id: int) -> None:
    """Lets the owner's time run out without waiting for it."""
    with database.write() as connection:
        connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(lease_until=1.0))
