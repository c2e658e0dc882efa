"""An upstream's answer, told as its bytes come."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from gateway.core.errors import GatewayError
from gateway.core.events import Event, Finished
from gateway.core.telling import Tell, Wait
from gateway.providers.http1 import Reply
from gateway.providers.http1_wire import TransportError

END_GRACE_S = 0.25
"""How long an answer that has said its end may take to end on the wire, too, so that its connection
serves again."""


class Reader(Protocol):
    """Makes events of one answer's bytes, however they are cut: everything but the end. `finished`
    holds that once it is known, and `lines` counts the lines read so far."""

    @property
    def finished(self) -> Finished | None: ...

    @property
    def lines(self) -> int: ...

    def feed(self, chunk: bytes) -> Iterable[Event]:
        """Raises a GatewayError, after the events before it."""
        ...

    def end(self) -> Iterable[Event]: ...


async def pour_answer(
    reply: Reply,
    reader: Reader,
    tell: Tell,
    *,
    idle_s: float,
    describe: Callable[[TransportError, bool], GatewayError],
    begun: Callable[[], None] = lambda: None,
) -> Finished:
    """Tell the events of `reply` as they come; return its end, which is not told.

    `begun` is called when the first bytes come; then lines must come within `idle_s` of each other.
    Raises what `reader` raises, and what `describe` makes of a connection's failure, which
    is told whether the answer had begun.
    """

    def take(chunk: bytes) -> Wait | None:
        if reader.finished is not None:
            return None
        lines = reader.lines
        if not lines:
            begun()
        wait = _tell_parts(reader.feed(chunk), tell)
        if reader.lines > lines and not reply.is_whole:
            # Bytes that make no line are no progress: a peer may drip them for ever.
            reply.expect_within(idle_s if reader.finished is None else END_GRACE_S)
        return wait

    try:
        await reply.pour(take)
    except TransportError as error:
        if reader.finished is None:
            raise describe(error, reader.lines > 0) from error
    if reader.finished is None:
        wait = _tell_parts(reader.end(), tell)
        if wait is not None:
            await wait()
    assert reader.finished is not None, "an answer without an end is an error"
    return reader.finished


def _tell_parts(parts: Iterable[Event], tell: Tell) -> Wait | None:
    """Tell all `parts` at once; raises what ends them when those before it were told."""
    events: list[Event] = []
    fault: GatewayError | None = None
    try:
        events.extend(parts)
    except GatewayError as error:
        fault = error
    wait = tell(events) if events else None
    if fault is None:
        return wait
    if wait is None:
        raise fault
    return partial(_fail_after, wait, fault)


async def _fail_after(wait: Wait, fault: GatewayError) -> None:
    await wait()
    raise fault
