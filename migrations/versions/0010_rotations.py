"""Rotations and their steps."""

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | None = None
depends_on: str | None = None

_CAUSES = "'INTERVAL', 'CRON', 'REQUESTS', 'HAND'"
_STATES = "'QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED'"
_PHASES = "'WAITING', 'WARMING', 'DRAINING', 'LOADING', 'RELEASING'"
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "rotations",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("current_model", sa.Text(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("due_at", _TIME),
        sa.Column("counted", sa.BigInteger(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_rotations")),
    )
    op.create_table(
        "rotation_steps",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("rotation", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("wish", sa.Text()),
        sa.Column("target", sa.Text()),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("skipped", sa.JSON(), nullable=False),
        sa.Column("message", sa.Text()),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("node", sa.Text()),
        sa.Column("boot", sa.Text()),
        sa.Column("leased_until", _TIME),
        sa.Column("asked_at", _TIME, nullable=False),
        sa.Column("begun_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.CheckConstraint(f"cause IN ({_CAUSES})", name=op.f("ck_rotation_steps_cause")),
        sa.CheckConstraint(f"state IN ({_STATES})", name=op.f("ck_rotation_steps_state")),
        sa.CheckConstraint(f"phase IN ({_PHASES})", name=op.f("ck_rotation_steps_phase")),
        sa.ForeignKeyConstraint(
            ["rotation"],
            ["rotations.name"],
            name=op.f("fk_rotation_steps_rotation_rotations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rotation_steps")),
    )
    op.create_index("ix_rotation_steps_rotation", "rotation_steps", ["rotation", "asked_at"])
    op.create_index(
        "uq_rotation_steps_active",
        "rotation_steps",
        ["rotation"],
        unique=True,
        sqlite_where=sa.text("state IN ('QUEUED', 'RUNNING')"),
        postgresql_where=sa.text("state IN ('QUEUED', 'RUNNING')"),
    )


def downgrade() -> None:
    op.drop_table("rotation_steps")
    op.drop_table("rotations")
