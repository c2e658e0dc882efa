"""The run of a gateway that opened a session."""

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    boot = sa.Column("boot", sa.Text(), nullable=False, server_default=sa.text("''"))
    op.add_column("stream_sessions", boot)


def downgrade() -> None:
    op.drop_column("stream_sessions", "boot")
