"""Who opened a stream, why requests went where they went, and rules of routing."""

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | None = None
depends_on: str | None = None

_HAS_CALLER = sa.text("caller != ''")


def upgrade() -> None:
    op.add_column(
        "stream_sessions",
        sa.Column("caller", sa.Text(), nullable=False, server_default=sa.text("''")),
    )
    op.create_index(
        "ix_stream_sessions_caller",
        "stream_sessions",
        ["caller", "opened_at"],
        sqlite_where=_HAS_CALLER,
        postgresql_where=_HAS_CALLER,
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("requested_model", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text()),
        sa.Column("model", sa.Text()),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("error_code", sa.Text()),
        sa.Column("record", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decisions")),
    )
    op.create_index("ix_decisions_opened_at", "decisions", ["opened_at"])
    op.create_table(
        "routing_rules",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("draft", sa.JSON(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_routing_rules")),
    )
    op.create_table(
        "routing_stamp",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_routing_stamp")),
    )


def downgrade() -> None:
    op.drop_table("routing_stamp")
    op.drop_table("routing_rules")
    op.drop_index("ix_decisions_opened_at", "decisions")
    op.drop_table("decisions")
    op.drop_index("ix_stream_sessions_caller", "stream_sessions")
    op.drop_column("stream_sessions", "caller")
