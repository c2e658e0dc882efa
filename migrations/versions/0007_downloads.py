"""The queue of downloads."""

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None

_STATES = "'QUEUED', 'RUNNING', 'PAUSED', 'SUCCEEDED', 'SKIPPED', 'FAILED', 'CANCELLED'"


def upgrade() -> None:
    op.create_table(
        "downloads",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("repo", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text()),
        sa.Column("patterns", sa.JSON(), nullable=False),
        sa.Column("force", sa.Boolean(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("node", sa.Text()),
        sa.Column("boot", sa.Text()),
        sa.Column("leased_until", sa.DateTime(timezone=True)),
        sa.Column("commit_id", sa.Text()),
        sa.Column("path", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.Column("error", sa.JSON()),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("bytes_total", sa.BigInteger()),
        sa.Column("files_done", sa.BigInteger(), nullable=False),
        sa.Column("files_total", sa.BigInteger()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(f"state IN ({_STATES})", name=op.f("ck_downloads_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_downloads")),
    )
    op.create_index("ix_downloads_created_at", "downloads", ["created_at"])
    op.create_index("ix_downloads_state", "downloads", ["state"])


def downgrade() -> None:
    op.drop_table("downloads")
