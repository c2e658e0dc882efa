"""The tables, and how plain values become columns. Knows no connection and no statement.

Times are real timestamps in UTC, so that `sqlite3` and `psql` show dates; Unix seconds exist only
above this boundary and are kept to the microsecond. All text columns pass through `clean_text`:
one NUL in a vendor's error message must not make a batch of good records fail for ever.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, runtime_checkable

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

from gateway.core.downloads import DownloadState
from gateway.core.library import Check, Verdict
from gateway.core.rotation import ACTIVE, Phase, StepState, Trigger
from gateway.core.states import ModelState, ProviderState, StreamEnd

# PostgreSQL's index entries end at 2,704 bytes: keys are kept so short that several fit one.
MAX_ID_LENGTH = 128
MAX_PROVIDER_LENGTH = 64
MAX_MODEL_LENGTH = 512
MAX_REVISION_LENGTH = 64
MAX_MESSAGE_LENGTH = 4000
MAX_PATH_LENGTH = 8192
MAX_COUNT = 2**63 - 1

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def clean_text(text: str, limit: int) -> str:
    """Return `text` as every database can hold it: NUL and lone surrogates replaced, bounded."""
    if len(text) <= limit and _is_clean(text):
        return text
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return _UNSTORABLE.sub("\ufffd", text)


def _is_clean(text: str) -> bool:
    """Tell at a glance that every database can hold `text`, as is so of nearly all."""
    return text.isascii() and "\x00" not in text


def clean_count(count: int) -> int:
    """Return `count` within what a 64-bit column can hold."""
    return max(0, min(count, MAX_COUNT))


@runtime_checkable
class ColumnType(Protocol):
    """A type that binds the values of many rows at once."""

    def bind_column(self, values: Sequence[Any], dialect: Dialect) -> Sequence[Any]:
        """Return the values as the driver takes them: what SQLAlchemy would make of each."""
        ...


class UnixTime(TypeDecorator[float]):
    """Unix seconds outside, a UTC timestamp in the database."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> datetime | None:
        return None if value is None else datetime.fromtimestamp(value, UTC)

    def bind_column(self, values: Sequence[float | None], dialect: Dialect) -> Sequence[Any]:
        if dialect.name == "sqlite":
            return _sqlite_times(values)
        return [self.process_bind_param(value, dialect) for value in values]

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> float | None:
        if value is None:
            return None
        # SQLite has no time zones: what it gives back is the UTC that was written.
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def _sqlite_times(values: Iterable[float | None]) -> list[str | None]:
    """Return Unix seconds as SQLAlchemy writes a UTC timestamp there. Times that come together are
    of few seconds: each is worked out once."""
    seconds: dict[float, str] = {}
    texts: list[str | None] = []
    for value in values:
        if value is None:
            texts.append(None)
            continue
        second, fraction = divmod(value, 1)
        micros = round(fraction * 1e6)
        if micros == 1_000_000:
            second, micros = second + 1, 0
        if second not in seconds:
            at = datetime.fromtimestamp(second, UTC)
            seconds[second] = at.replace(tzinfo=None).isoformat(" ")
        texts.append(f"{seconds[second]}.{micros:06}")
    return texts


class CleanText(TypeDecorator[str]):
    """Text of at most `limit` characters that every database can hold."""

    impl = Text
    cache_ok = True

    def __init__(self, limit: int = MAX_ID_LENGTH) -> None:
        super().__init__()
        self.limit = limit

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean_text(value, self.limit)

    def bind_column(self, values: Sequence[str | None], dialect: Dialect) -> Sequence[str | None]:
        texts = list(filter(None, values))
        is_short = max(map(len, texts), default=0) <= self.limit
        if is_short and _is_clean("".join(texts)):
            return values
        return [self.process_bind_param(value, dialect) for value in values]


class Count(TypeDecorator[int]):
    """A number of bytes or tokens, as somebody else counted them."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        return None if value is None else clean_count(value)

    def bind_column(self, values: Sequence[int | None], dialect: Dialect) -> Sequence[int | None]:
        counts = [value for value in values if value is not None]
        if min(counts, default=0) >= 0 and max(counts, default=0) <= MAX_COUNT:
            return values
        return [self.process_bind_param(value, dialect) for value in values]


def _one_of(column: str, values: Iterable[str], name: str) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=name)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

providers = Table(
    "providers",
    metadata,
    Column("node", CleanText(), primary_key=True),
    Column("name", CleanText(MAX_PROVIDER_LENGTH), primary_key=True),
    Column("kind", CleanText(), nullable=False),
    Column("state", CleanText(), nullable=False),
    Column("checked_at", UnixTime(), nullable=False),
    Column("last_seen_at", UnixTime()),
    Column("error_code", CleanText()),
    Column("error_message", CleanText(MAX_MESSAGE_LENGTH)),
    Column("capabilities", JSON(), nullable=False),
    _one_of("state", ProviderState, "state"),
)

models = Table(
    "models",
    metadata,
    Column("node", CleanText(), primary_key=True),
    Column("provider", CleanText(MAX_PROVIDER_LENGTH), primary_key=True),
    Column("model", CleanText(MAX_MODEL_LENGTH), primary_key=True),
    # A column of its own, as a path may hold "@"; "" is no revision, since a key cannot be NULL.
    Column("revision", CleanText(MAX_REVISION_LENGTH), primary_key=True),
    Column("state", CleanText(), nullable=False),
    Column("size_bytes", Count()),
    Column("message", CleanText(MAX_MESSAGE_LENGTH)),
    Column("updated_at", UnixTime(), nullable=False),
    _one_of("state", ModelState, "state"),
)

stream_sessions = Table(
    "stream_sessions",
    metadata,
    Column("id", CleanText(), primary_key=True),
    Column("request_id", CleanText(), nullable=False),
    Column("node", CleanText(), nullable=False),
    Column("boot", CleanText(), nullable=False, server_default=text("''")),
    Column("requested_model", CleanText(MAX_MODEL_LENGTH), nullable=False),
    Column("face", CleanText(), nullable=False),
    Column("opened_at", UnixTime(), nullable=False),
    Column("provider", CleanText(MAX_PROVIDER_LENGTH)),
    Column("model", CleanText(MAX_MODEL_LENGTH)),
    # Not "end": a reserved word, which everyone who opens the database would have to quote.
    Column("end_reason", CleanText()),
    Column("error_code", CleanText()),
    Column("prompt_tokens", Count()),
    Column("completion_tokens", Count()),
    Column("queue_ms", Double()),
    Column("load_ms", Double()),
    Column("ttft_ms", Double()),
    Column("total_ms", Double()),
    Column("closed_at", UnixTime()),
    Column("served_by", JSON(none_as_null=True)),
    Column("caller", CleanText(), nullable=False, server_default=text("''")),
    _one_of("end_reason", StreamEnd, "end_reason"),
    CheckConstraint("(end_reason IS NULL) = (closed_at IS NULL)", name="closed"),
)

boots = Table(
    "boots",
    metadata,
    Column("boot", CleanText(), primary_key=True),
    Column("node", CleanText(), nullable=False),
    Column("seen_at", UnixTime(), nullable=False),
)

Index("ix_stream_sessions_opened_at", stream_sessions.c.opened_at)
_still_open = stream_sessions.c.end_reason.is_(None)
Index(
    "ix_stream_sessions_open",
    stream_sessions.c.node,
    sqlite_where=_still_open,
    postgresql_where=_still_open,
)

# Without keys nobody has a name, and none of this costs anything.
_has_caller = stream_sessions.c.caller != text("''")
Index(
    "ix_stream_sessions_caller",
    stream_sessions.c.caller,
    stream_sessions.c.opened_at,
    sqlite_where=_has_caller,
    postgresql_where=_has_caller,
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", CleanText(), primary_key=True),
    Column("opened_at", UnixTime(), nullable=False),
    Column("caller", CleanText(), nullable=False),
    Column("requested_model", CleanText(MAX_MODEL_LENGTH), nullable=False),
    Column("provider", CleanText(MAX_PROVIDER_LENGTH)),
    Column("model", CleanText(MAX_MODEL_LENGTH)),
    Column("outcome", CleanText(), nullable=False),
    Column("error_code", CleanText()),
    # JSON as text: read as a whole, and never asked about.
    Column("record", Text(), nullable=False),
    Index("ix_decisions_opened_at", "opened_at"),
)

routing_rules = Table(
    "routing_rules",
    metadata,
    Column("name", CleanText(MAX_MODEL_LENGTH), primary_key=True),
    Column("draft", JSON(), nullable=False),
    Column("version", Count(), nullable=False),
    Column("updated_at", UnixTime(), nullable=False),
    Column("updated_by", CleanText(), nullable=False),
)

# One row: how often the rules were changed, and whose lock lets one writer in at a time.
routing_stamp = Table(
    "routing_stamp",
    metadata,
    Column("id", Count(), primary_key=True, autoincrement=False),
    Column("version", Count(), nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", CleanText(), primary_key=True),
    Column("name", CleanText(), nullable=False),
    Column("scopes", JSON(), nullable=False),
    Column("digest", CleanText(), nullable=False),
    Column("pepper", CleanText(), nullable=False),
    Column("max_streams", Count()),
    Column("requests_per_minute", Count()),
    Column("created_at", UnixTime(), nullable=False),
    Column("revoked_at", UnixTime()),
)

model_files = Table(
    "model_files",
    metadata,
    Column("node", CleanText(), primary_key=True),
    Column("path", CleanText(MAX_MODEL_LENGTH), primary_key=True),
    Column("name", CleanText(MAX_MODEL_LENGTH), nullable=False),
    Column("source", CleanText(), nullable=False),
    Column("repository", CleanText(MAX_MODEL_LENGTH)),
    Column("revision", CleanText(MAX_REVISION_LENGTH)),
    Column("size_bytes", Count(), nullable=False),
    Column("first_seen_at", UnixTime(), nullable=False),
    Column("last_used_at", UnixTime()),
    Column("verified_at", UnixTime()),
    Column("verdict", CleanText()),
    Column("checked", CleanText()),
    Column("stamp", CleanText()),
    Column("reason", CleanText(MAX_MESSAGE_LENGTH)),
    _one_of("verdict", Verdict, "verdict"),
    _one_of("checked", Check, "checked"),
    CheckConstraint("(verdict IS NULL) = (verified_at IS NULL)", name="verified"),
)

model_configs = Table(
    "model_configs",
    metadata,
    Column("provider", CleanText(MAX_PROVIDER_LENGTH), primary_key=True),
    Column("model", CleanText(MAX_MODEL_LENGTH), primary_key=True),
    Column("revision", CleanText(MAX_REVISION_LENGTH), primary_key=True),
    Column("config", JSON(), nullable=False),
    Column("updated_at", UnixTime(), nullable=False),
)

collections = Table(
    "collections",
    metadata,
    Column("id", CleanText(), primary_key=True),
    Column("name", CleanText(), nullable=False),
    Column("category", CleanText(), nullable=False),
    Column("description", CleanText(MAX_MESSAGE_LENGTH), nullable=False),
    Column("created_at", UnixTime(), nullable=False),
    Column("updated_at", UnixTime(), nullable=False),
    UniqueConstraint("name", name="uq_collections_name"),
)

collection_models = Table(
    "collection_models",
    metadata,
    Column(
        "collection_id",
        CleanText(),
        ForeignKey("collections.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("model", CleanText(MAX_MODEL_LENGTH), primary_key=True),
    Column("added_at", UnixTime(), nullable=False),
)
hub_metadata = Table(
    "hub_metadata",
    metadata,
    Column("key", CleanText(), primary_key=True),
    Column("body", LargeBinary(), nullable=False),
    Column("fetched_at", UnixTime(), nullable=False),
)
Index("ix_hub_metadata_fetched_at", hub_metadata.c.fetched_at)

secrets = Table(
    "secrets",
    metadata,
    Column("name", CleanText(), primary_key=True),
    # Text that Fernet made: it must come back as it is, so it is never cleaned.
    Column("locked", Text(), nullable=False),
    Column("updated_at", UnixTime(), nullable=False),
)


downloads = Table(
    "downloads",
    metadata,
    Column("id", CleanText(), primary_key=True),
    Column("source", CleanText(MAX_PROVIDER_LENGTH), nullable=False),
    Column("repo", CleanText(MAX_MODEL_LENGTH), nullable=False),
    Column("revision", CleanText(MAX_MODEL_LENGTH)),
    Column("patterns", JSON(), nullable=False),
    Column("force", Boolean(), nullable=False),
    Column("place", CleanText(MAX_PATH_LENGTH), nullable=False),
    Column("state", CleanText(), nullable=False),
    # Who runs it, or did last.
    Column("node", CleanText()),
    Column("boot", CleanText()),
    Column("leased_until", UnixTime()),
    # Not "commit": a reserved word.
    Column("commit_id", CleanText()),
    Column("path", CleanText(MAX_PATH_LENGTH)),
    Column("message", CleanText(MAX_MESSAGE_LENGTH)),
    Column("error", JSON(none_as_null=True)),
    Column("bytes_done", Count(), nullable=False),
    Column("bytes_total", Count()),
    Column("files_done", Count(), nullable=False),
    Column("files_total", Count()),
    Column("created_at", UnixTime(), nullable=False),
    Column("updated_at", UnixTime(), nullable=False),
    _one_of("state", DownloadState, "state"),
    Index("ix_downloads_created_at", "created_at"),
    Index("ix_downloads_state", "state"),
)

rotations = Table(
    "rotations",
    metadata,
    Column("name", CleanText(), primary_key=True),
    # A RotationOrder.
    Column("definition", JSON(), nullable=False),
    Column("source", CleanText(), nullable=False),
    Column("current_model", CleanText(MAX_MODEL_LENGTH), nullable=False),
    Column("paused", Boolean(), nullable=False),
    Column("due_at", UnixTime()),
    Column("counted", Count(), nullable=False),
    Column("created_at", UnixTime(), nullable=False),
    Column("updated_at", UnixTime(), nullable=False),
)

rotation_steps = Table(
    "rotation_steps",
    metadata,
    Column("id", CleanText(), primary_key=True),
    Column(
        "rotation",
        CleanText(),
        ForeignKey("rotations.name", ondelete="CASCADE"),
        nullable=False,
    ),
    # Not "trigger": a word of SQL, as "current" is.
    Column("cause", CleanText(), nullable=False),
    Column("origin", CleanText(MAX_MODEL_LENGTH), nullable=False),
    Column("wish", CleanText(MAX_MODEL_LENGTH)),
    Column("target", CleanText(MAX_MODEL_LENGTH)),
    Column("state", CleanText(), nullable=False),
    Column("phase", CleanText(), nullable=False),
    Column("skipped", JSON(), nullable=False),
    Column("message", CleanText(MAX_MESSAGE_LENGTH)),
    # Who takes the step, or did last; each time that somebody takes it on the fence rises.
    Column("fence", Count(), nullable=False),
    Column("node", CleanText()),
    Column("boot", CleanText()),
    Column("leased_until", UnixTime()),
    Column("asked_at", UnixTime(), nullable=False),
    Column("begun_at", UnixTime()),
    Column("ended_at", UnixTime()),
    _one_of("cause", Trigger, "cause"),
    _one_of("state", StepState, "state"),
    _one_of("phase", Phase, "phase"),
    Index("ix_rotation_steps_rotation", "rotation", "asked_at"),
)
_is_active = rotation_steps.c.state.in_(sorted(ACTIVE))
# One at a time of each rotation, whoever asks.
Index(
    "uq_rotation_steps_active",
    rotation_steps.c.rotation,
    unique=True,
    sqlite_where=_is_active,
    postgresql_where=_is_active,
)
