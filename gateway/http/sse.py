"""A live stream as server-sent events: whose it is, and that its end is never lost.

How an event looks is for each face's encoder. Nothing is ever compressed or buffered here.
"""

import asyncio
from collections.abc import Callable

import anyio
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.http.decision_ids import note_decision
from gateway.http.disconnect import CONNECTION, Connection, cancelled_on_disconnect
from gateway.http.sse_events import EventEncoder
from gateway.http.sse_flow import SseFlow
from gateway.http.sse_pull import pull
from gateway.http.sse_wire import AsgiWire
from gateway.services.live import LiveStream, StreamReader
from gateway.settings import Settings


class StreamReply(Response):
    """Attaches a reader and sends what it reads. The reader leaves in whatever way this call ends.

    With `awaits_first`, what fails before the first event that the face shows is raised, for a
    reply with a real status; anything later is a frame.

    One task, which sleeps: pings and the limit of a send are timers, and the server tells when the
    client leaves. A server that exits has drained the streams before, so each has an end to write,
    and cuts who does not take it.
    """

    def __init__(
        self,
        attach: Callable[[], StreamReader],
        make_encoder: Callable[[LiveStream], EventEncoder],
        settings: Settings,
        *,
        awaits_first: bool = True,
    ) -> None:
        super().__init__()
        self._attach = attach
        self._make_encoder = make_encoder
        self._settings = settings
        self._awaits_first = awaits_first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection | None = scope.get(CONNECTION)
        async with self._attach() as reader:
            note_decision(scope, reader.stream.id)
            encoder = self._make_encoder(reader.stream)
            with cancelled_on_disconnect(scope, receive) as work:
                if connection is not None:
                    # Thousands of these wait at once: nobody needs what their clients said first.
                    scope["headers"].clear()
                    await self._flow(reader, encoder, AsgiWire(send), connection, work)
                else:
                    awaits = self._awaits_first
                    await pull(reader, encoder, send, work, self._settings, awaits_first=awaits)
                return
            raise ClientDisconnect

    async def _flow(
        self,
        reader: StreamReader,
        encoder: EventEncoder,
        wire: AsgiWire,
        connection: Connection,
        work: anyio.CancelScope,
    ) -> None:
        """Sleep while callbacks write; raises what fails before anything was written."""
        ending: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

        def end(error: Exception | None) -> None:
            if not ending.done():  # this task may be cancelled, and not know it yet
                ending.set_result(error)

        flow = SseFlow(
            reader,
            encoder,
            wire,
            connection,
            self._settings,
            over=end,
            lose_patience=work.cancel,
        )
        try:
            flow.begin(awaits_first=self._awaits_first)
            error = await ending
        finally:
            flow.stop()
        if error is not None:
            raise error
