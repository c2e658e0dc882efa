"""One answer of a server that speaks the OpenAI API, and the place that it takes there."""

from collections.abc import Awaitable, Callable, Mapping

from gateway.core.errors import GatewayError
from gateway.core.telling import Over, Tell
from gateway.providers.http1 import Reply
from gateway.providers.http1_wire import ReplyHead, TransportError
from gateway.providers.openai_fault_wire import Faults
from gateway.providers.openai_stream_wire import AnswerReader
from gateway.providers.pouring_wire import Answer
from gateway.providers.replicas_wire import HeldReply

Open = Callable[[HeldReply | None], Awaitable[HeldReply]]
"""Returns a reply that is an answer: the one that was begun, or one of its own asking. Closes what
it does not return."""


class OpenAIAnswer(Answer):
    __slots__ = ("_faults", "_held", "_open")

    def __init__(
        self, reader: AnswerReader, tell: Tell, faults: Faults, open_reply: Open, within_s: float
    ) -> None:
        """`within_s` is between lines."""
        super().__init__(reader, tell, within_s)
        self._faults = faults
        self._open = open_reply
        self._held: HeldReply | None = None

    def begin_with(self, held: HeldReply, over: Over) -> Callable[[], None]:
        """Do as `begin`."""
        self._held = held
        return self.begin(held.reply, over)

    async def _arrive(self) -> Reply:
        held, self._held = self._held, None
        self._held = await self._open(held)
        self._reply = self._held.reply
        return self._reply

    def _is_plain(self, head: ReplyHead) -> bool:
        return head.status == 200 and not (head.is_encoded or other_than_stream(head.headers))

    def _describe(self, error: TransportError) -> GatewayError:
        return self._faults.of_transport(error, self._reader.lines > 0)

    def _close(self) -> None:
        if self._held is not None:
            self._held.close()


def other_than_stream(headers: Mapping[str, str]) -> str:
    """Return the content type of what is no stream of events; "" for what may be one."""
    kind = headers.get("content-type", "").lower()
    return kind.partition(";")[0] if kind.startswith(("application/json", "text/html")) else ""
