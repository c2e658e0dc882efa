"""Operations as server-sent events: graphql-sse in its distinct connections mode.

Source: https://github.com/enisdenjo/graphql-sse/blob/master/PROTOCOL.md. Whatever is wrong with
the operation is told in a `next` event; `complete` is always the last.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio.lowlevel
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.settings import Settings
from schema.execution import Reply, encode_json

logger = logging.getLogger(__name__)

EXIT_GRACE_S = 2.0
"""How long a server that exits leaves a stream to write its end."""

# Browsers drop events without a data line; some clients split at LF LF only.
_COMPLETE = b"event: complete\ndata:\n\n"
_HEADERS = {"Cache-Control": "no-store", "Vary": "Accept"}


class EventStream(Response):
    """Sends replies as they come; however the sending ends, the operation ends with it."""

    def __init__(self, replies: AsyncGenerator[Reply, None], settings: Settings) -> None:
        super().__init__()
        self._replies = replies
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(_frames(self._replies)) as frames:
            try:
                await self._event_source(frames)(scope, receive, send)
            except SendTimeoutError:
                logger.info("a subscription's reader took nothing for too long")

    def _event_source(self, frames: AsyncGenerator[bytes, None]) -> EventSourceResponse:
        return EventSourceResponse(
            frames,
            headers=_HEADERS,
            ping=self._settings.ping_interval_s,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            sep="\n",
            send_timeout=self._settings.send_timeout_s,
            shutdown_grace_period=EXIT_GRACE_S,
        )


async def _frames(replies: AsyncGenerator[Reply, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(replies):
        async for reply in replies:
            yield f"event: next\ndata: {encode_json(reply)}\n\n".encode()
            # Changes may come faster than anything suspends; the client's leaving must be seen.
            await anyio.lowlevel.checkpoint()
    yield _COMPLETE
