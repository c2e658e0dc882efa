"""Where the gateway keeps what it must not forget."""

from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator

from gateway.settings.values import Folder, Group


class StateSettings(Group):
    """Folders, the database, records."""

    data_dir: Folder = Field(Path(".data"), description="Folder of the database, caches and keys.")
    database_url: SecretStr = Field(
        SecretStr(""),
        description="sqlite:///path or postgresql://user:password@host/name; empty: SQLite in "
        "the data folder.",
    )
    node: str = Field(
        "", max_length=128, description="Name of this gateway; empty: host name and port."
    )
    journal_dir: Folder | None = Field(
        None,
        description="Folder of records that the database does not take; empty: journal in the "
        "data folder.",
    )
    journal_max_bytes: int = Field(
        256 * 2**20, ge=2**20, description="Most bytes of such records on the disk."
    )
    records_keep_days: int = Field(
        0, ge=0, le=36_500, description="Days that records of streams are kept; 0: for ever."
    )
    records_purge_batch: int = Field(
        1000, ge=1, le=10_000, description="Records that are deleted in one transaction."
    )
    lease_s: float = Field(
        60.0,
        ge=2,
        allow_inf_nan=False,
        description="Seconds without a sign of life until others close what a gateway left open.",
    )

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr) -> SecretStr:
        scheme = value.get_secret_value().partition(":")[0].partition("+")[0]
        if scheme not in ("", "sqlite", "postgresql"):
            raise ValueError("it must begin with sqlite:/// or postgresql://")
        return value

    @field_validator("database_url", mode="before")
    @classmethod
    def _rename_scheme(cls, value: Any) -> Any:
        """Take the scheme that many hosters write for what it means."""
        if isinstance(value, str) and value.startswith("postgres://"):
            return value.replace("postgres", "postgresql", 1)
        return value

    @cached_property
    def resolved_database_url(self) -> str:
        """The database to use; holds a password, so never show it."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_dir / 'gateway.db'}"

    @cached_property
    def resolved_journal_dir(self) -> Path:
        return self.journal_dir or self.data_dir / "journal"
