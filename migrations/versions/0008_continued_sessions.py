"""The models that made an answer together."""

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("stream_sessions", sa.Column("served_by", sa.JSON()))


def downgrade() -> None:
    op.drop_column("stream_sessions", "served_by")
