"""The record of one stream: how it was opened and how it ended, as the database keeps it."""

import msgspec

from gateway.core.events import Timings, Usage
from gateway.core.states import StreamEnd


class SessionOpened(msgspec.Struct, frozen=True, tag="opened"):
    """An accepted stream, as soon as it is known where it goes (or that it goes nowhere).

    `requested_model` is the name as the caller wrote it; times are Unix seconds; `boot` is the one
    run of the gateway `node` that has the stream, so that a later one knows what died with it;
    `caller` is the id of the key that opened it.
    """

    id: str
    request_id: str
    node: str
    requested_model: str
    opened_at: float
    face: str = "native"
    provider: str | None = None
    model: str | None = None
    boot: str = ""
    caller: str = ""


class SessionClosed(msgspec.Struct, frozen=True, tag="closed"):
    """The terminal record: there is exactly one for every SessionOpened.

    `served_by` are the full names of the models that made the answer, in their order, where it went
    on after a failure; else it is empty.
    """

    id: str
    provider: str | None
    model: str | None
    end: StreamEnd
    closed_at: float
    usage: Usage
    timings: Timings
    error_code: str | None = None
    served_by: tuple[str, ...] = ()


SessionRecord = SessionOpened | SessionClosed


class RecordCounts(msgspec.Struct):
    """What became of the records since the start; health shows it.

    `written` and `spooled` count records (one that went through the journal is in both, and in
    `replayed`), `lost` and `purged` count sessions.
    """

    written: int = 0
    spooled: int = 0
    replayed: int = 0
    lost: int = 0
    purged: int = 0


class Session(msgspec.Struct, frozen=True):
    """A session as it is read back; `closed` is None while the stream runs.

    The provider and the model of `opened` are the last that served it.
    """

    opened: SessionOpened
    closed: SessionClosed | None = None
