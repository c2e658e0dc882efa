"""Providers, models and stream sessions."""

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    _create_providers()
    _create_models()
    _create_stream_sessions()


def downgrade() -> None:
    op.drop_table("stream_sessions")
    op.drop_table("models")
    op.drop_table("providers")


def _create_providers() -> None:
    op.create_table(
        "providers",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True)),
        sa.Column("error_code", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("node", "name", name=op.f("pk_providers")),
        sa.CheckConstraint("state IN ('UNKNOWN', 'UP', 'DOWN')", name=op.f("ck_providers_state")),
    )


def _create_models() -> None:
    op.create_table(
        "models",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger()),
        sa.Column("message", sa.Text()),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("node", "provider", "model", "revision", name=op.f("pk_models")),
        sa.CheckConstraint(
            "state IN ('NOT_LOADED', 'LOADING', 'LOADED', 'UNLOADING', 'FAILED')",
            name=op.f("ck_models_state"),
        ),
    )


def _create_stream_sessions() -> None:
    op.create_table(
        "stream_sessions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("requested_model", sa.Text(), nullable=False),
        sa.Column("face", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("provider", sa.Text()),
        sa.Column("model", sa.Text()),
        sa.Column("end_reason", sa.Text()),
        sa.Column("error_code", sa.Text()),
        sa.Column("prompt_tokens", sa.BigInteger()),
        sa.Column("completion_tokens", sa.BigInteger()),
        sa.Column("queue_ms", sa.Double()),
        sa.Column("load_ms", sa.Double()),
        sa.Column("ttft_ms", sa.Double()),
        sa.Column("total_ms", sa.Double()),
        sa.Column("closed_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stream_sessions")),
        sa.CheckConstraint(
            "end_reason IN ('stop', 'length', 'tool_calls', 'cancelled', 'error', 'interrupted')",
            name=op.f("ck_stream_sessions_end_reason"),
        ),
        sa.CheckConstraint(
            "(end_reason IS NULL) = (closed_at IS NULL)", name=op.f("ck_stream_sessions_closed")
        ),
    )
    op.create_index(op.f("ix_stream_sessions_opened_at"), "stream_sessions", ["opened_at"])
    still_open = sa.text("end_reason IS NULL")
    op.create_index(
        op.f("ix_stream_sessions_open"),
        "stream_sessions",
        ["node"],
        sqlite_where=still_open,
        postgresql_where=still_open,
    )
