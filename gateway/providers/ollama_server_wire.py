"""Asking an Ollama server, and what it means when it does not answer as it should."""

import msgspec

from gateway.core.errors import GatewayError, ProviderProtocolError
from gateway.core.names import ModelRef
from gateway.providers.http1 import Http1Client, Reply
from gateway.providers.http1_wire import TransportError
from gateway.providers.ollama_fault_wire import (
    PROVIDER,
    describe_status,
    describe_transport,
    encoded_answer,
)

_MAX_ERROR_BYTES = 64 * 1024


class OllamaTimeouts(msgspec.Struct, frozen=True):
    """Seconds. `first_byte_s` covers Ollama's queue and the load of a model; `idle_s` is between
    lines of an answer; `control_s` bounds a whole listing."""

    connect_s: float = 2.0
    first_byte_s: float = 300.0
    idle_s: float = 60.0
    control_s: float = 0.8


class OllamaServer:
    """One server, as those ask it who want an answer of a model. Raises only GatewayErrors."""

    def __init__(self, http: Http1Client, base_url: str, timeouts: OllamaTimeouts) -> None:
        self.timeouts = timeouts
        self._http = http
        self._base_url = base_url

    @property
    def is_ready(self) -> bool:
        """Whether it can be asked at once."""
        return self._http.is_ready

    def ask_now(self, path: str, body: bytes) -> Reply:
        """Do as `ask` where the server `is_ready`."""
        return self._http.ask_now(path, body, self.timeouts.first_byte_s)

    async def ask(self, path: str, body: bytes) -> Reply:
        """Send a request; its reply must be closed, and `arrive` is next."""
        try:
            return await self._http.ask(path, body, self.timeouts.first_byte_s)
        except TransportError as error:
            raise self.describe(error, False) from error

    async def arrive(self, reply: Reply, ref: ModelRef) -> None:
        """Wait for the head of a reply; raise what it means if it is no answer."""
        try:
            await reply.arrive()
        except TransportError as error:
            raise self.describe(error, False) from error
        if reply.is_encoded:
            raise encoded_answer()
        if reply.status != 200:
            said = await reply.read_some(self.timeouts.control_s, _MAX_ERROR_BYTES)
            raise describe_status(reply.status, said, ref, reply.headers.get("retry-after"))

    async def fetch(self, path: str, body: bytes, ref: ModelRef, max_bytes: int) -> bytes:
        """Ask, and return the whole body of the answer."""
        reply = await self.ask(path, body)
        try:
            await self.arrive(reply, ref)
            return await self._read_whole(reply, max_bytes)
        finally:
            reply.close()

    def describe(self, error: TransportError, started: bool) -> GatewayError:
        """Return what a failure of a connection means, on which the answer had `started` or not."""
        return describe_transport(error, self._base_url, started)

    async def _read_whole(self, reply: Reply, max_bytes: int) -> bytes:
        answer = bytearray()
        reply.expect_within(self.timeouts.idle_s)
        while chunk := await self._read(reply):
            answer += chunk
            if len(answer) > max_bytes:
                raise ProviderProtocolError(PROVIDER, "Ollama's answer is too long.")
        return bytes(answer)

    async def _read(self, reply: Reply) -> bytes:
        try:
            return await reply.read()
        except TransportError as error:
            raise self.describe(error, True) from error
