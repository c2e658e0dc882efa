"""Streams: how many, how long, how much is kept of them."""

from pydantic import Field

from gateway.settings.values import Group, Positive


class StreamSettings(Group):
    """Streams."""

    max_streams: int = Field(2048, ge=1, description="Streams open at once; above it: 503.")
    max_subscriptions: int = Field(
        1024, ge=1, description="GraphQL subscriptions at once, and as many WebSockets."
    )
    stream_buffer_events: int = Field(256, ge=1, description="Events held for a slow reader.")
    stream_replay_events: int = Field(
        4096, ge=1, description="Events of a stream held for a reader that comes back."
    )
    stream_replay_bytes: int = Field(
        2**20, ge=1024, description="Bytes that the events of one stream may take, about."
    )
    stream_kept_bytes: int = Field(
        64 * 2**20, ge=0, description="Bytes that all streams may take once they ended, about."
    )
    stream_resume_s: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds a stream goes on without its reader; 0: it is cancelled at once.",
    )
    stream_detached_s: Positive = Field(
        300.0, description="Seconds a detached stream goes on, or is kept, without a reader."
    )
    stream_keep_s: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds a stream can still be read after its end.",
    )
    stream_token_s: float = Field(
        600.0, ge=1, le=86400, description="Seconds the token of a stream lets readers in."
    )
    send_timeout_s: Positive = Field(30.0, description="Seconds until a stalled reader is cut.")
    ping_interval_s: Positive = Field(15.0, description="Seconds between pings of a stream.")
    drain_grace_s: float = Field(7.0, ge=0, description="Seconds streams may go on at shutdown.")
