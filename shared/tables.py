"""The record: every table, with the reasons for the columns that guard something. Times are Unix seconds (float)."""

import sqlalchemy as sa

from shared.plain_text import PlainJson, PlainText

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite makes only an INTEGER primary key count up by itself, and BIGINT is what PostgreSQL needs.
BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Seconds: sa.Double[float] = sa.Double()


def _job_id(*, primary_key: bool = False) -> sa.Column[int]:
    owner = sa.ForeignKey("jobs.id", ondelete="CASCADE")
    return sa.Column("job_id", BigId, owner, nullable=False, primary_key=primary_key)


jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    sa.Column("owner", sa.String(200), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("recipe", sa.String(100)),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False, default=0),
    sa.Column("generation", sa.BigInteger, nullable=False, default=1),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("stop_requested", sa.Boolean, nullable=False, default=False),
    # Until when the owner of the generation may write; 0 when nobody owns it. NOT NULL: a NULL lease never runs out.
    sa.Column("lease_until", Seconds, nullable=False, default=0.0),
    sa.Column("total_epochs", sa.BigInteger, nullable=False),
    sa.Column("current_epoch", sa.BigInteger, nullable=False, default=0),
    sa.Column("progress", sa.Double, nullable=False, default=0.0),
    sa.Column("current_loss", sa.Double),
    sa.Column("metrics", PlainJson, nullable=False, default=dict),
    sa.Column("eta_s", sa.Double),
    # When the running attempt will end, by its own pace; written with eta_s, and of no meaning without.
    sa.Column("expected_end_at", Seconds),
    # When its training was last heard of by a report; its host's heartbeat is another thing.
    sa.Column("reported_at", Seconds),
    sa.Column("final_metrics", PlainJson),
    sa.Column("error", PlainJson),
    sa.Column("model_id", BigId),
    # The last committed checkpoint: the pointer that only the owner of the generation may move.
    sa.Column("checkpoint_id", BigId),
    # Older checkpoints belong to a run that was restarted from scratch: nothing resumes from them.
    sa.Column("checkpoints_after", BigId, nullable=False, default=0),
    sa.Column("pending_reason", PlainText),
    # When a queued job will start, by the ends of what runs; NULL where nobody can know.
    sa.Column("expected_start_at", Seconds),
    sa.Column("not_before", Seconds, nullable=False, default=0.0),
    sa.Column("restarts_used", sa.Integer, nullable=False, default=0),
    # Lost attempts in a row without a new checkpoint; three end the job as `lost`.
    sa.Column("losses", sa.Integer, nullable=False, default=0),
    # The newest event SQL knows: the `prev` of the next generation's first event.
    sa.Column("last_generation", sa.BigInteger, nullable=False, default=0),
    sa.Column("last_seq", sa.BigInteger, nullable=False, default=0),
    sa.Column("created_at", Seconds, nullable=False),
    sa.Column("queued_at", Seconds, nullable=False),
    sa.Column("started_at", Seconds),
    sa.Column("finished_at", Seconds),
    sa.Column("updated_at", Seconds, nullable=False),
    sa.CheckConstraint("status IN ('queued', 'running', 'succeeded', 'failed', 'stopped')", name="status"),
    sa.CheckConstraint("lease_until >= 0", name="lease"),
    sa.CheckConstraint("status <> 'running' OR lease_until > 0", name="running_has_lease"),
    sa.CheckConstraint("generation >= 1", name="generation"),
    sa.Index(None, "status", "priority", "queued_at"),
    sa.Index(None, "owner", "id"),
    sa.Index(None, "status", "lease_until"),
)

job_tags = sa.Table(
    "job_tags",
    metadata,
    _job_id(primary_key=True),
    sa.Column("tag", sa.String(64), primary_key=True),
    sa.Index(None, "tag", "job_id"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("owner", sa.String(200), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("body_sha256", sa.String(64), nullable=False),
    _job_id(),
    sa.Column("created_at", Seconds, nullable=False),
)

hosts = sa.Table(
    "hosts",
    metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    # One agent's life: a second worker of the same name is refused while this one's heartbeat is fresh.
    sa.Column("instance", sa.String(64), nullable=False),
    sa.Column("boot_id", sa.String(64), nullable=False),
    sa.Column("pid_namespace", sa.String(64), nullable=False),
    sa.Column("draining", sa.Boolean, nullable=False, default=False),
    sa.Column("slots", sa.Integer, nullable=False),
    sa.Column("cpus", sa.Integer, nullable=False),
    sa.Column("cpu_percent", sa.Double),
    sa.Column("memory_total_bytes", sa.BigInteger, nullable=False),
    sa.Column("memory_used_bytes", sa.BigInteger, nullable=False),
    sa.Column("versions", sa.JSON, nullable=False, default=dict),
    # Whether it can read what others write to the artifact store; without, it gets no resumed job.
    sa.Column("reads_store", sa.Boolean, nullable=False, default=True),
    sa.Column("registered_at", Seconds, nullable=False),
    sa.Column("heartbeat_at", Seconds, nullable=False),
)

gpus = sa.Table(
    "gpus",
    metadata,
    sa.Column("uuid", sa.String(100), primary_key=True),
    sa.Column("host", sa.String(100), sa.ForeignKey("hosts.name", ondelete="CASCADE"), nullable=False),
    sa.Column("index", sa.Integer, nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("total_bytes", sa.BigInteger, nullable=False),
    sa.Column("used_bytes", sa.BigInteger, nullable=False),
    sa.Column("utilisation", sa.Integer),
    sa.Column("users", sa.JSON, nullable=False, default=list),
    # The reservation itself: set in the placing transaction, cleared in the one that ends the attempt.
    sa.Column("job_id", BigId, sa.ForeignKey("jobs.id")),
    sa.Column("quarantined", sa.Boolean, nullable=False, default=False),
    # What was used when the job came: what will be used again once it has gone.
    sa.Column("others_bytes", sa.BigInteger, nullable=False, default=0, server_default="0"),
    sa.Index(None, "host"),
    sa.Index(None, "job_id"),
)

placements = sa.Table(
    "placements",
    metadata,
    _job_id(primary_key=True),
    sa.Column("member", sa.Integer, primary_key=True),
    sa.Column("host", sa.String(100), nullable=False),
    sa.Column("gpus", sa.JSON, nullable=False, default=list),
    sa.Column("placed_at", Seconds, nullable=False),
    sa.Column("pokes", sa.Integer, nullable=False, default=0),
    sa.Column("next_poke_at", Seconds, nullable=False),
    sa.Index(None, "host"),
)

members = sa.Table(
    "members",
    metadata,
    _job_id(primary_key=True),
    # While it waits, the generation that it claimed under; the job's claim raises it together with the job's own.
    sa.Column("generation", sa.BigInteger, primary_key=True),
    sa.Column("member", sa.Integer, primary_key=True),
    # NULL while it waits for the others: such a row has no process but its supervisor, and is deleted on a release.
    sa.Column("attempt", sa.Integer),
    # Which supervisor's row it is: one that was frozen and replaced meanwhile renews nothing.
    sa.Column("token", sa.String(32), nullable=False),
    sa.Column("host", sa.String(100), nullable=False),
    sa.Column("gpus", sa.JSON, nullable=False, default=list),
    # Until when it may compute and write; 0 once it has ended. Of member 0 the job's own lease counts.
    sa.Column("lease_until", Seconds, nullable=False),
    sa.Column("claimed_at", Seconds, nullable=False),
    # Which process tree this is: whoever starts the next attempt on this host kills what is left of it.
    sa.Column("boot_id", sa.String(64), nullable=False),
    sa.Column("pid_namespace", sa.String(64), nullable=False),
    sa.Column("supervisor_pid", sa.Integer, nullable=False),
    sa.Column("supervisor_started", sa.BigInteger, nullable=False),
    sa.Column("launcher_pid", sa.Integer),
    sa.Column("launcher_started", sa.BigInteger),
    # How the other hosts reach this one; `port` is where rank 0 listens, and so member 0's only.
    sa.Column("address", sa.String(255), nullable=False),
    sa.Column("port", sa.Integer),
    # What member 0 tells it, and whether its worker shuts down.
    sa.Column("ordered", sa.String(16)),
    sa.Column("draining", sa.Boolean, nullable=False, default=False),
    # The first failure of its ranks, with its moment by the database's clock: the earliest of all members is named.
    sa.Column("error", PlainJson),
    sa.Column("failed_at", Seconds),
    sa.Column("ended_at", Seconds),
    sa.Column("outcome", sa.String(32)),
    sa.Column("reason", PlainText),
    sa.Column("exit_code", sa.Integer),
    sa.CheckConstraint("lease_until >= 0", name="lease"),
    sa.CheckConstraint("ended_at IS NOT NULL OR lease_until > 0", name="open_has_lease"),
    sa.CheckConstraint("ended_at IS NULL OR outcome IS NOT NULL", name="ended_says_how"),
    sa.CheckConstraint("error IS NULL OR failed_at IS NOT NULL", name="error_has_moment"),
    sa.CheckConstraint("member >= 0", name="member"),
    sa.CheckConstraint("port IS NULL OR port BETWEEN 1 AND 65535", name="port"),
    sa.CheckConstraint("ordered IN ('drain', 'kill')", name="ordered"),
    sa.Index(None, "host", "ended_at"),
)

member_messages = sa.Table(
    "member_messages",
    metadata,
    _job_id(primary_key=True),
    sa.Column("generation", sa.BigInteger, primary_key=True),
    sa.Column("member", sa.Integer, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    # A JSON list of what a member's ranks said, for member 0, which takes it and deletes the row.
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("created_at", Seconds, nullable=False),
)

# Of all dispatchers one makes the pass of each second; the row says when the last turn was taken.
turns = sa.Table(
    "turns",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("taken_at", Seconds, nullable=False),
)

# What happened where no process has a metrics page of its own: counted here, shown by every gateway.
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("total", sa.BigInteger, nullable=False),
)

avoided_hosts = sa.Table(
    "avoided_hosts",
    metadata,
    _job_id(primary_key=True),
    sa.Column("host", sa.String(100), primary_key=True),
    sa.Column("until", Seconds, nullable=False),
)

attempts = sa.Table(
    "attempts",
    metadata,
    _job_id(primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("host", sa.String(100), nullable=False),
    sa.Column("gpus", sa.JSON, nullable=False, default=list),
    sa.Column("started_at", Seconds, nullable=False),
    sa.Column("ended_at", Seconds),
    sa.Column("outcome", sa.String(32)),
    sa.Column("reason", PlainText),
    sa.Column("error", PlainJson),
    sa.Column("resumed_epoch", sa.BigInteger),
    # Which process tree this was: whoever starts the next attempt on this host kills what is left of it.
    sa.Column("boot_id", sa.String(64)),
    sa.Column("pid_namespace", sa.String(64)),
    sa.Column("supervisor_pid", sa.Integer),
    sa.Column("supervisor_started", sa.BigInteger),
    sa.Column("launcher_pid", sa.Integer),
    sa.Column("launcher_started", sa.BigInteger),
    sa.Index(None, "host", "ended_at"),
)

metric_points = sa.Table(
    "metric_points",
    metadata,
    _job_id(primary_key=True),
    sa.Column("epoch", sa.BigInteger, primary_key=True),
    # -1: the epoch's own (merged) report; else a report by step, which never becomes an event.
    sa.Column("step", sa.BigInteger, primary_key=True),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("reported", PlainJson, nullable=False),
    sa.Column("recorded_at", Seconds, nullable=False),
)

transition_events = sa.Table(
    "transition_events",
    metadata,
    _job_id(primary_key=True),
    sa.Column("generation", sa.BigInteger, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("prev", sa.String(48), nullable=False),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("announced", sa.Boolean, nullable=False, default=False),
    sa.Column("created_at", Seconds, nullable=False),
    sa.Index(
        "ix_transition_events_unannounced",
        "job_id",
        sqlite_where=sa.text("NOT announced"),
        postgresql_where=sa.text("NOT announced"),
    ),
)

event_chunks = sa.Table(
    "event_chunks",
    metadata,
    _job_id(primary_key=True),
    sa.Column("generation", sa.BigInteger, primary_key=True),
    sa.Column("first_seq", sa.BigInteger, primary_key=True),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    # The shipped bytes, one event a line (JSON holds no raw newline).
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("created_at", Seconds, nullable=False),
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    _job_id(),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("epoch", sa.BigInteger),
    sa.Column("step", sa.BigInteger),
    sa.Column("key", sa.String(500), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    # What "best" is judged by (val_loss, else the current loss); NULL when the script reported none.
    sa.Column("loss", sa.Double),
    sa.Column("created_at", Seconds, nullable=False),
    sa.CheckConstraint("kind IN ('checkpoint', 'model', 'log', 'oom_snapshot')", name="kind"),
    sa.Index(None, "job_id", "kind"),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("id", BigId, primary_key=True, autoincrement=True),
    _job_id(),
    sa.Column("artifact_id", BigId, sa.ForeignKey("artifacts.id"), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("owner", sa.String(200), nullable=False),
    sa.Column("metrics", PlainJson, nullable=False, default=dict),
    sa.Column("lineage", PlainJson, nullable=False),
    sa.Column("created_at", Seconds, nullable=False),
    sa.Index(None, "job_id"),
    sa.Index(None, "owner", "id"),
)

bundles = sa.Table(
    "bundles",
    metadata,
    # Of the canonical content (shared/bundle_content.py), not of the archive that was sent.
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("files", sa.Integer, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    # Every file's path: what an entrypoint is checked against when a job is submitted.
    sa.Column("paths", sa.JSON, nullable=False),
    sa.Column("created_at", Seconds, nullable=False),
)

bundle_owners = sa.Table(
    "bundle_owners",
    metadata,
    sa.Column("owner", sa.String(200), primary_key=True),
    sa.Column("sha256", sa.String(64), sa.ForeignKey("bundles.sha256"), primary_key=True),
    sa.Column("created_at", Seconds, nullable=False),
)
