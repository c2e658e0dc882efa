"""Connections that speak graphql-transport-ws: one task reads, one runs each operation.

Strawberry's own handler is not used: malformed messages raise in it, nothing bounds what a client
that does not read leaves waiting, and its errors are not in the gateway's shape.
"""

import logging
from collections.abc import Mapping
from contextlib import ExitStack, aclosing, suppress
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect
from strawberry.http import GraphQLRequestData
from strawberry.types.graphql import OperationType

from gateway.core import rate
from gateway.core.errors import GatewayError, Overloaded, Unauthenticated
from gateway.core.keys import CALLER, Caller, read_credential
from gateway.services.gateway import Gateway
from schema.body import MAX_BODY_BYTES, Refusal, parse_body
from schema.errors import render_cause, render_error
from schema.execution import Executor, Reply, encode_json
from schema.messages import (
    PROTOCOL,
    Close,
    Complete,
    ConnectionInit,
    Malformed,
    Ping,
    Pong,
    Subscribe,
    decode_message,
)

logger = logging.getLogger(__name__)

MAX_REASON_BYTES = 123
"""What fits into a close frame. Source: RFC 6455, section 5.5."""


class SocketLimits(msgspec.Struct, frozen=True):
    """Bounds of all connections together (`sockets`) and of each one; times are seconds."""

    sockets: int
    ping_interval_s: float
    send_timeout_s: float
    operations: int = 32
    init_timeout_s: float = 10.0
    leave_s: float = 1.0
    strangers: int = 64
    """Of all connections, how many may wait for a first message that brings a key."""


class Sockets:
    """The open connections; when the gateway drains, they are closed as soon as they are idle."""

    def __init__(self, executor: Executor, gateway: Gateway, limits: SocketLimits) -> None:
        self.executor = executor
        self.gateway = gateway
        self.limits = limits
        self._open: set[_Connection] = set()

    @property
    def count(self) -> int:
        return len(self._open)

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one connection to its end."""
        caller = websocket.scope.get(CALLER)
        if self._is_full(for_stranger=caller is None):
            full = Overloaded(f"All {self.limits.sockets} WebSockets are taken.")
            reply = JSONResponse({"errors": [render_cause(full)]}, 503, {"Retry-After": "1"})
            await websocket.send_denial_response(reply)
            return
        connection = _Connection(websocket, caller, self)
        self._open.add(connection)
        try:
            await connection.serve()
        finally:
            self._open.discard(connection)

    def _is_full(self, *, for_stranger: bool) -> bool:
        if len(self._open) >= self.limits.sockets:
            return True
        strangers = sum(connection.caller is None for connection in self._open)
        return for_stranger and strangers >= self.limits.strangers


class _Connection:
    """One connection; `caller` is None until its first message brought a key."""

    def __init__(self, websocket: WebSocket, caller: Caller | None, sockets: Sockets) -> None:
        self.caller = caller
        self._websocket = websocket
        self._executor = sockets.executor
        self._gateway = sockets.gateway
        self._gatekeeper = sockets.gateway.gatekeeper
        self._limits = sockets.limits
        self._admissions = ExitStack()
        self._operations: dict[str, anyio.CancelScope] = {}
        self._is_acknowledged = False
        self._is_leaving = False
        self._end: tuple[Close, str] | None = None
        self._tasks: TaskGroup

    async def serve(self) -> None:
        if PROTOCOL not in self._websocket.scope["subprotocols"]:
            await self._websocket.accept()
            await self._websocket.close(Close.UNKNOWN_PROTOCOL, "Subprotocol not acceptable")
            return
        await self._websocket.accept(PROTOCOL)
        with self._admissions:
            async with anyio.create_task_group() as self._tasks:
                if self.caller is not None:
                    self._watch_key(self.caller)
                self._tasks.start_soon(self._require_init)
                self._tasks.start_soon(self._leave)
                await self._read()
                self._tasks.cancel_scope.cancel()
        await self._close()

    async def _read(self) -> None:
        while (received := await self._websocket.receive())["type"] == "websocket.receive":
            frame = received.get("text")
            if frame is not None and len(frame) > MAX_BODY_BYTES:
                self._hang_up(Close.TOO_LARGE, "Message too big")
                return
            try:
                await self._take(frame)
            except Malformed as fault:
                self._hang_up(Close.MALFORMED, str(fault))
            # Many small messages may be there at once; others want the loop, too.
            await anyio.lowlevel.checkpoint()

    async def _take(self, frame: str | None) -> None:
        match decode_message(frame):
            case ConnectionInit(payload):
                await self._acknowledge(payload or {})
            case Ping():
                await self._send({"type": "pong"})
            case Pong():
                pass
            case Subscribe() as message:
                await self._subscribe(message)
            case Complete(id):
                if scope := self._operations.pop(id, None):
                    scope.cancel()

    async def _acknowledge(self, payload: Mapping[str, Any]) -> None:
        if self._is_acknowledged:
            self._hang_up(Close.INIT_TWICE, "Too many initialisation requests")
            return
        try:
            self._admit(payload)
        except GatewayError as error:
            self._hang_up(Close.FORBIDDEN, error.message)
            return
        self._is_acknowledged = True
        await self._send({"type": "connection_ack"})
        self._tasks.start_soon(self._ping)

    def _admit(self, payload: Mapping[str, Any]) -> None:
        """Take the key in the first message, where the handshake had none or the same."""
        if not self._gatekeeper.needs_keys:
            return
        named = ((name, value) for name, value in payload.items() if isinstance(value, str))
        credential = read_credential(named)
        if credential is None and self.caller is None:
            raise Unauthenticated("An API key is needed.")
        if credential is None:
            return
        client = self._websocket.client
        caller = self._gatekeeper.authenticate(credential, client.host if client else "")
        if self.caller is None:
            self._count(caller)
            self.caller = caller
            self._watch_key(caller)
        elif caller.id != self.caller.id:
            raise Unauthenticated("The connection carries several keys.")

    def _watch_key(self, caller: Caller) -> None:
        cut = partial(self._hang_up, Close.FORBIDDEN, "The key was revoked.")
        self._admissions.enter_context(self._gatekeeper.admitted(caller, cut))

    def _count(self, caller: Caller) -> None:
        """Count a request of the caller's minute; raises RateLimited."""
        allowance = self._gatekeeper.count_request(caller)
        if allowance is not None:
            rate.require(allowance)

    async def _subscribe(self, message: Subscribe) -> None:
        if not self._is_acknowledged or self.caller is None:
            self._hang_up(Close.UNAUTHORIZED, "Unauthorized")
        elif message.id in self._operations:
            self._hang_up(Close.ID_TAKEN, f"Subscriber for {message.id} already exists")
        elif len(self._operations) >= self._limits.operations:
            most = self._limits.operations
            full = Overloaded(f"A connection has at most {most} operations at once.")
            await self._refuse(message.id, full)
        else:
            await self._begin(message, self.caller)

    async def _begin(self, message: Subscribe, caller: Caller) -> None:
        try:
            self._count(caller)
        except GatewayError as error:
            await self._refuse(message.id, error)
            return
        try:
            asked = parse_body(bytes(message.payload))
        except Refusal as refusal:
            if refusal.status == 400:
                raise Malformed(refusal.message) from None
            errors = [render_error(refusal.as_error())]
            await self._send({"id": message.id, "type": "error", "payload": errors})
            return
        scope = self._operations[message.id] = anyio.CancelScope()
        self._tasks.start_soon(self._run, message.id, asked, caller, scope)

    async def _run(
        self, id: str, asked: GraphQLRequestData, caller: Caller, scope: anyio.CancelScope
    ) -> None:
        """Run one operation; its id is free again before its last message goes out."""
        try:
            with scope:
                last = await self._tell_replies(id, asked, caller)
                self._forget(id, scope)
                await self._send(last)
        finally:
            self._forget(id, scope)
        if self._is_leaving:
            self._leave_if_idle()

    async def _tell_replies(self, id: str, asked: GraphQLRequestData, caller: Caller) -> Reply:
        """Send the replies of an operation; return the message that ends it."""
        async with aclosing(self._executor.stream(asked, tuple(OperationType), caller)) as replies:
            async for reply in replies:
                if "data" not in reply:
                    return {"id": id, "type": "error", "payload": reply["errors"]}
                await self._send({"id": id, "type": "next", "payload": reply})
                await anyio.lowlevel.checkpoint()
        return {"id": id, "type": "complete"}

    def _forget(self, id: str, scope: anyio.CancelScope) -> None:
        """Free the id, unless it stands for another operation already."""
        if self._operations.get(id) is scope:
            del self._operations[id]

    async def _refuse(self, id: str, error: GatewayError) -> None:
        await self._send({"id": id, "type": "error", "payload": [render_cause(error)]})

    async def _require_init(self) -> None:
        await anyio.sleep(self._limits.init_timeout_s)
        if not self._is_acknowledged:
            self._hang_up(Close.INIT_TIMEOUT, "Connection initialisation timeout")

    async def _ping(self) -> None:
        """Keep proxies from closing, and find out about a reader that takes nothing."""
        while True:
            await anyio.sleep(self._limits.ping_interval_s)
            await self._send({"type": "ping"})

    async def _leave(self) -> None:
        await self._gateway.feed.wait_closed()
        self._is_leaving = True
        self._leave_if_idle()
        await self._gateway.streams.wait_idle()  # they have the grace of the drain
        await anyio.sleep(self._limits.leave_s)
        self._hang_up(Close.GOING_AWAY, "Going away")

    def _leave_if_idle(self) -> None:
        if not self._operations:
            self._hang_up(Close.GOING_AWAY, "Going away")

    async def _send(self, message: Reply) -> None:
        try:
            with anyio.fail_after(self._limits.send_timeout_s):
                await self._websocket.send_text(encode_json(message))
        except TimeoutError:
            logger.info("a WebSocket's reader took nothing for too long")
            self._tasks.cancel_scope.cancel()
        except (WebSocketDisconnect, RuntimeError):
            # Starlette and uvicorn say so when the connection was closed meanwhile.
            self._tasks.cancel_scope.cancel()

    def _hang_up(self, code: Close, reason: str) -> None:
        """End the connection; the first reason is the one that is told."""
        if self._end is None:
            self._end = code, reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        self._tasks.cancel_scope.cancel()

    async def _close(self) -> None:
        if self._end is None:
            return
        code, reason = self._end
        with anyio.move_on_after(self._limits.send_timeout_s):
            with suppress(WebSocketDisconnect, RuntimeError):  # it is closed already
                await self._websocket.close(code, reason)
