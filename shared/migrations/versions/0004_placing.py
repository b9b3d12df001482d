"""Placing: expected ends and starts, whose turn a pass is, and counters of what should be rare."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("expected_end_at", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("reported_at", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("expected_start_at", sa.Double(), nullable=True))
    # With a default of the server's: a worker of the version before this one goes on registering its GPUs.
    op.add_column("gpus", sa.Column("others_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "turns",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("taken_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_turns")),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )


def downgrade() -> None:
    op.drop_table("counters")
    op.drop_table("turns")
    op.drop_column("gpus", "others_bytes")
    op.drop_column("jobs", "expected_start_at")
    op.drop_column("jobs", "reported_at")
    op.drop_column("jobs", "expected_end_at")
