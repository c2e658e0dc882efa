"""The library: files of models and their verdicts, configs, collections."""

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "model_files",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("repository", sa.Text()),
        sa.Column("revision", sa.Text()),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("first_seen_at", _TIME, nullable=False),
        sa.Column("last_used_at", _TIME),
        sa.Column("verified_at", _TIME),
        sa.Column("verdict", sa.Text()),
        sa.Column("checked", sa.Text()),
        sa.Column("stamp", sa.Text()),
        sa.Column("reason", sa.Text()),
        sa.CheckConstraint(
            "verdict IN ('ok', 'corrupt', 'refused')", name=op.f("ck_model_files_verdict")
        ),
        sa.CheckConstraint(
            "checked IN ('headers', 'checksums', 'load')", name=op.f("ck_model_files_checked")
        ),
        sa.CheckConstraint(
            "(verdict IS NULL) = (verified_at IS NULL)", name=op.f("ck_model_files_verified")
        ),
        sa.PrimaryKeyConstraint("node", "path", name=op.f("pk_model_files")),
    )
    op.create_table(
        "model_configs",
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("provider", "model", "revision", name=op.f("pk_model_configs")),
    )
    op.create_table(
        "collections",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_collections")),
        sa.UniqueConstraint("name", name=op.f("uq_collections_name")),
    )
    op.create_table(
        "collection_models",
        sa.Column("collection_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("added_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["collection_id"],
            ["collections.id"],
            name=op.f("fk_collection_models_collection_id_collections"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("collection_id", "model", name=op.f("pk_collection_models")),
    )


def downgrade() -> None:
    op.drop_table("collection_models")
    op.drop_table("collections")
    op.drop_table("model_configs")
    op.drop_table("model_files")
