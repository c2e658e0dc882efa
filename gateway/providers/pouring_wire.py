"""An upstream's answer, told as its bytes come."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from gateway.core.errors import GatewayError
from gateway.core.events import Event, Finished
from gateway.core.telling import Over, Rest, Tell, Wait, tell_one
from gateway.providers.http1 import Reply
from gateway.providers.http1_wire import ReplyHead, TransportError

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


class Answer(ABC):
    """One answer, from its request to its end.

    It goes by itself as long as all goes well: from `begin` on it is told in the turns in which its
    bytes come. `run` does what is left, wherever the answer is, and that is all of it where it was
    not begun. What differs between servers is for who derives from it.
    """

    __slots__ = (
        "_idle_s",
        "_is_held",
        "_is_poured",
        "_is_run",
        "_over",
        "_reader",
        "_reply",
        "_tell",
    )

    def __init__(self, reader: Reader, tell: Tell, idle_s: float) -> None:
        """`idle_s` is how long a line may take after the one before it."""
        self._reader = reader
        self._tell = tell
        self._idle_s = idle_s
        self._reply: Reply | None = None
        self._over: Over | None = None
        self._is_held = True
        self._is_poured = False
        self._is_run = False

    async def run(self) -> None:
        """Go on to the end. Raises what the reader and who is told raise, and the GatewayError of a
        server or a connection that fails."""
        self._is_run = True
        try:
            reply = await self._arrive()
            finished = await self._pour(reply)
        finally:
            self._let_go()
        await self._conclude(finished)

    def begin(self, reply: Reply, over: Over) -> Callable[[], None]:
        """Go by itself with a `reply` that was just asked for, as `core.ports.Eager` has it; return
        what cancels."""
        self._reply, self._over = reply, over
        reply.listen(self._hear)
        return self.cancel

    def cancel(self) -> None:
        """Give the answer up, whatever is left of it; who runs it is to be cancelled himself."""
        self._over = None
        if not self._is_run:
            self._let_go()

    # --- what differs --------------------------------------------------------------------------

    @abstractmethod
    async def _arrive(self) -> Reply:
        """Return the reply, asked for if need be, once it is one that can be poured."""

    @abstractmethod
    def _is_plain(self, head: ReplyHead) -> bool:
        """Tell whether a reply is one that can be poured."""

    @abstractmethod
    def _describe(self, error: TransportError) -> GatewayError:
        """Return what a failure of the connection means."""

    def _begun(self) -> None:  # noqa: B027 - not everybody minds
        """Take note that the first bytes came."""

    def _is_doubtful(self, finished: Finished) -> bool:
        """Tell whether `_conclude` has more to do than to tell the end."""
        return False

    async def _conclude(self, finished: Finished) -> None:
        """Tell the end."""
        await tell_one(self._tell, finished)

    @abstractmethod
    def _close(self) -> None:
        """Give the connection back, and whatever else is held. Called once."""

    # --- how it goes ---------------------------------------------------------------------------

    def _hear(self) -> None:
        """Go on with what is known now of the reply."""
        reply = self._reply
        assert reply is not None, "who listens has a reply"
        if not self._is_poured:
            head = reply.head
            if head is not None and self._is_plain(head):
                self._is_poured = True
                reply.pour_into(self._take)
            elif head is not None or reply.is_stuck:
                self._hand_over(self.run)
                return
        if not self._is_held:
            return  # given up by who was told
        finished = self._reader.finished
        if reply.is_stuck or (finished is None and reply.is_whole):
            self._hand_over(self.run)
        elif finished is not None and reply.is_whole:
            self._end(finished)

    def _let_go(self) -> None:
        if self._is_held:
            self._is_held = False
            self._close()

    def _end(self, finished: Finished) -> None:
        """Tell the end, of which all has come."""
        self._let_go()
        if self._is_doubtful(finished):
            self._hand_over(partial(self._conclude, finished))
            return
        rest: Rest | None
        try:
            rest = self._tell((finished,))
        except Exception as error:
            rest = partial(_fail, error)
        self._hand_over(rest)

    def _hand_over(self, rest: Rest | None) -> None:
        """Leave the rest to who asked, unless he gave the answer up."""
        over, self._over = self._over, None
        if over is None:
            return
        if self._is_held and self._reply is not None:
            self._reply.listen(None)
        over(rest)

    def _take(self, chunk: bytes) -> Wait | None:
        reader, reply = self._reader, self._reply
        if reader.finished is not None:
            return None
        lines = reader.lines
        if not lines:
            self._begun()
        parts = reader.feed(chunk)
        if type(parts) is list:  # nothing ends it
            wait = self._tell(parts) if parts else None
        else:
            wait = _tell_parts(parts, self._tell)
        # Bytes that make no line are no progress: a peer may drip them for ever.
        if reader.lines > lines and self._is_held and reply is not None:
            reply.expect_within(self._idle_s if reader.finished is None else END_GRACE_S)
        return wait

    async def _pour(self, reply: Reply) -> Finished:
        """Tell the events as they come, lines within `_idle_s` of each other; return the end."""
        reader = self._reader
        try:
            await reply.pour(self._take)
        except TransportError as error:
            if reader.finished is None:
                raise self._describe(error) from error
        if reader.finished is None:
            wait = _tell_parts(reader.end(), self._tell)
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


async def _fail(error: Exception) -> None:
    raise error
