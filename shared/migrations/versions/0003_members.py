"""Members: the hosts of a job that trains on several, each with its own lease, and what they tell member 0."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "members",
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("member", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("host", sa.String(length=100), nullable=False),
        sa.Column("gpus", sa.JSON(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.Column("claimed_at", sa.Double(), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("pid_namespace", sa.String(length=64), nullable=False),
        sa.Column("supervisor_pid", sa.Integer(), nullable=False),
        sa.Column("supervisor_started", sa.BigInteger(), nullable=False),
        sa.Column("launcher_pid", sa.Integer(), nullable=True),
        sa.Column("launcher_started", sa.BigInteger(), nullable=True),
        sa.Column("address", sa.String(length=255), nullable=False),
        sa.Column("port", sa.Integer(), nullable=True),
        sa.Column("ordered", sa.String(length=16), nullable=True),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("failed_at", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("outcome", sa.String(length=32), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.CheckConstraint("lease_until >= 0", name=op.f("ck_members_lease")),
        sa.CheckConstraint("ended_at IS NOT NULL OR lease_until > 0", name=op.f("ck_members_open_has_lease")),
        sa.CheckConstraint("ended_at IS NULL OR outcome IS NOT NULL", name=op.f("ck_members_ended_says_how")),
        sa.CheckConstraint("error IS NULL OR failed_at IS NOT NULL", name=op.f("ck_members_error_has_moment")),
        sa.CheckConstraint("member >= 0", name=op.f("ck_members_member")),
        sa.CheckConstraint("port IS NULL OR port BETWEEN 1 AND 65535", name=op.f("ck_members_port")),
        sa.CheckConstraint("ordered IN ('drain', 'kill')", name=op.f("ck_members_ordered")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_members_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "generation", "member", name=op.f("pk_members")),
    )
    op.create_index(op.f("ix_members_host_ended_at"), "members", ["host", "ended_at"], unique=False)
    op.create_table(
        "member_messages",
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("member", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_member_messages_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "generation", "member", "seq", name=op.f("pk_member_messages")),
    )


def downgrade() -> None:
    op.drop_table("member_messages")
    op.drop_table("members")
