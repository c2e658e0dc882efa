"""One request on the express way, from its order to the last byte of its reply. All of it is
callbacks: of the stream that answers, and of the connection.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from starlette.responses import Response

from gateway import telemetry
from gateway.core.errors import GatewayError
from gateway.core.events import Generation
from gateway.http.disconnect import Connection
from gateway.http.encoding import encode_json
from gateway.http.errors import refuse
from gateway.http.express.heads import Passed
from gateway.http.express.replies import Headers, Replies
from gateway.http.orders import Order, open_stream
from gateway.http.sse_flow import SseFlow
from gateway.services.gatekeeper import Gatekeeper
from gateway.services.live import LiveStream, StreamReader
from gateway.services.streams import StreamService
from gateway.settings import Settings
from gateway.telemetry.meter import Meter

logger = logging.getLogger(__name__)


class Means(NamedTuple):
    """What all exchanges of a server share."""

    streams: StreamService
    gatekeeper: Gatekeeper
    meter: Meter
    settings: Settings
    replies: Replies


class Line(Protocol):
    """A connection, as who answers on it sees it."""

    transport: asyncio.Transport

    @property
    def connection(self) -> Connection: ...

    @property
    def own_headers(self) -> Headers:
        """The headers of every reply of this server."""
        ...

    def done(self) -> None:
        """The reply is written: the next request may be read."""
        ...


class Exchange(ABC):
    """Answers one request; say `begin` once. Nothing is written once the connection is lost."""

    __slots__ = ("_line", "_means", "_order", "_passed", "_request_id", "_stream_id")

    def __init__(
        self, means: Means, passed: Passed, order: Order, request_id: str, line: Line
    ) -> None:
        self._means = means
        self._passed = passed
        self._order = order
        self._request_id = request_id
        self._line = line
        self._stream_id = ""

    @abstractmethod
    def begin(self) -> None: ...

    def _refuse(self, error: Exception) -> None:
        """Reply with what failed before anything was written."""
        token = telemetry.request_id.set(self._request_id)
        try:
            response: Response = refuse(self._passed.path, error)
        finally:
            telemetry.request_id.reset(token)
        line = self._line
        self._means.meter.responded(response.status_code)
        line.transport.write(
            self._means.replies.refusal(
                line.own_headers, self._request_id, self._stream_id, response
            )
        )
        line.done()


class WholeExchange(Exchange):
    """Replies with the whole answer."""

    __slots__ = ("_stream",)

    def begin(self) -> None:
        order = self._order
        try:
            self._stream: LiveStream = self._means.streams.ask(
                order.request, face=order.face, caller=self._passed.caller, told=self._tell
            )
        except GatewayError as error:
            self._refuse(error)
            return
        self._stream_id = self._stream.id
        self._line.connection.watch(self._stream.forsake)

    def _tell(self, answer: Generation | GatewayError) -> None:
        connection = self._line.connection
        if connection.is_lost:
            return
        connection.unwatch(self._stream.forsake)
        if isinstance(answer, GatewayError):
            self._refuse(answer)
            return
        try:
            body = encode_json(self._order.describe(self._stream, answer))
        except Exception as defect:
            self._refuse(defect)
            return
        line, means = self._line, self._means
        means.meter.responded(200)
        line.transport.write(
            means.replies.whole(line.own_headers, self._request_id, self._stream_id, body)
        )
        line.done()


class StreamExchange(Exchange):
    """Replies with a stream; fulfils SseWire."""

    __slots__ = ("_flow", "_has_begun", "_is_over", "_reader", "_visit")

    def begin(self) -> None:
        means, line, caller = self._means, self._line, self._passed.caller
        self._has_begun = self._is_over = False
        try:
            self._reader: StreamReader = open_stream(means.streams, self._order, caller)
        except GatewayError as error:
            self._refuse(error)
            return
        self._stream_id = self._reader.stream.id
        self._visit: AbstractContextManager[None] = means.gatekeeper.admitted(
            caller, line.transport.abort
        )
        self._visit.__enter__()
        self._flow = SseFlow(
            self._reader,
            self._order.encode(self._reader.stream),
            self,
            line.connection,
            means.settings,
            over=self._end,
            lose_patience=line.transport.abort,
        )
        self._flow.begin(awaits_first=True)
        if not self._is_over:
            line.connection.watch(self._lose)  # after the flow, which counts what was taken

    def start(self, stream_id: str) -> None:
        self._has_begun = True
        self._means.meter.responded(200)
        self._line.transport.write(
            self._means.replies.stream(self._line.own_headers, self._request_id, stream_id)
        )

    def write(self, frames: bytes) -> None:
        self._line.transport.write(b"%x\r\n%b\r\n" % (len(frames), frames))

    def end(self, frames: bytes) -> None:
        chunk = b"%x\r\n%b\r\n" % (len(frames), frames) if frames else b""
        self._line.transport.write(chunk + b"0\r\n\r\n")

    def _end(self, error: Exception | None) -> None:
        self._leave()
        if error is None:
            self._line.done()
        elif self._has_begun:
            logger.error("POST %r failed", self._passed.path, exc_info=error)
            self._line.transport.abort()  # the reply stays incomplete
        else:
            self._refuse(error)

    def _lose(self) -> None:
        self._flow.stop()
        self._leave()

    def _leave(self) -> None:
        self._is_over = True
        self._line.connection.unwatch(self._lose)
        self._visit.__exit__(None, None, None)
        self._reader.leave()
        del self._flow  # which knows this one: work for the collector
