"""The provider for servers that speak the OpenAI API: vLLM, SGLang, llama.cpp, TGI and the like.

Owns the connections to the servers of one name and their deadlines. What goes over them is
described in the `openai_*_wire` modules. Which URLs there are only the operator says, redirects are
not followed, and no proxy is asked: neither a request nor an answer leads anywhere else.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import (
    GatewayError,
    ModelNotFound,
    ProviderTimeout,
    UnsupportedCapability,
)
from gateway.core.loading import (
    ConfigChange,
    ConfigReport,
    LoadConfig,
    LoadPlan,
    ModelConfig,
    ModelStatus,
)
from gateway.core.messages import GenerateRequest
from gateway.core.models import ModelInfo, Resident
from gateway.core.names import ModelRef
from gateway.core.telling import Over, Tell
from gateway.providers import ProviderContext
from gateway.providers.http1 import Reply
from gateway.providers.http1_wire import ConnectTimedOut, TransportError, Unreachable
from gateway.providers.openai_answer_wire import OpenAIAnswer, other_than_stream
from gateway.providers.openai_embed_wire import (
    EMBEDDINGS,
    encode_embed,
    max_answer_bytes,
    read_embeddings,
)
from gateway.providers.openai_fault_wire import Faults
from gateway.providers.openai_listing_wire import (
    Listed,
    is_allowed,
    list_literally,
    read_listing,
)
from gateway.providers.openai_stream_wire import AnswerReader
from gateway.providers.openai_wire import Dialect, encode_request
from gateway.providers.replicas_wire import HeldReply, Replica, Replicas

if TYPE_CHECKING:
    from gateway.servers import OpenAIServer
    from gateway.settings import Settings

_MAX_ERROR_BYTES = 64 * 1024
_MAX_LISTING_BYTES = 16 * 1024 * 1024
_HEADERS = {
    "Accept": "text/event-stream, application/json",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": "model-gateway",
}

Encode = Callable[[Dialect], tuple[str, bytes]]


def create(settings: "Settings", context: ProviderContext) -> "OpenAIService":
    """Return the provider for the servers that the settings know by the context's name."""
    return OpenAIService(context.name, settings.openai[context.name], max_asked=settings.max_asked)


class OpenAIService:
    """The servers of one name. Build it on the event loop that will use it."""

    def __init__(self, name: str, server: "OpenAIServer", *, max_asked: int = sys.maxsize) -> None:
        """`max_asked` requests is each server at, at the most."""
        self.name = name
        self._server = server
        key = server.key.get_secret_value()
        headers = {**_HEADERS, "Authorization": f"Bearer {key}"} if key else _HEADERS
        self._replicas = Replicas(
            server.urls, headers, connect_s=server.connect_timeout_s, max_asked=max_asked
        )
        self._faults = Faults(name, server.urls, key)
        self._dialect = Dialect()
        self._listed: dict[ModelRef, Listed] = {}

    async def models(self) -> Sequence[ModelInfo]:
        """Return the models of all servers that answer within `control_timeout_s`.

        Raises ProviderError when none of them does.
        """
        found: dict[ModelRef, Listed] = {}
        errors: list[GatewayError] = []

        async def look(replica: Replica) -> None:
            try:
                listed = await self._list(replica)
            except GatewayError as error:
                errors.append(error)
            else:
                replica.refs = frozenset(each.info.ref for each in listed)
                for each in listed:
                    found.setdefault(each.info.ref, each)

        async with anyio.create_task_group() as tasks:
            for replica in self._replicas:
                tasks.start_soon(look, replica)
        if len(errors) == len(self._server.urls):
            raise errors[0]
        self._listed = found
        return [each.info for each in found.values()]

    async def resident(self) -> Sequence[Resident]:
        """Return nothing: what a server has in its memory it does not tell."""
        return ()

    async def answer(self, request: GenerateRequest, ref: ModelRef, tell: Tell) -> None:
        """Generate; being cancelled closes the connection, the one way to cancel there."""
        encode = self._encoder(request, ref)
        await self._new_answer(request, ref, tell, encode, self._dialect).run()

    def begin(
        self, request: GenerateRequest, ref: ModelRef, tell: Tell, over: Over
    ) -> Callable[[], None] | None:
        """Do as `answer`, without waiting; None where the server whose turn it is keeps no
        connection, the request has images, or is refused."""
        if request.has_images:
            return None
        dialect = self._dialect
        try:
            encode = self._encoder(request, ref)
            path, body = encode(dialect)
        except GatewayError:
            return None
        held = self._replicas.post_now(path, body, ref, self._server.first_byte_timeout_s)
        if held is None:
            return None
        return self._new_answer(request, ref, tell, encode, dialect).begin_with(held, over)

    def _encoder(self, request: GenerateRequest, ref: ModelRef) -> Encode:
        """Return what encodes a request; raises ModelNotFound."""
        model, continues = self._require_allowed(ref), self._server.continues
        return lambda dialect: encode_request(request, model, dialect, continues)

    def _new_answer(
        self, request: GenerateRequest, ref: ModelRef, tell: Tell, encode: Encode, dialect: Dialect
    ) -> OpenAIAnswer:
        async def open_stream(held: HeldReply | None) -> HeldReply:
            held = await self._open(encode, dialect, ref, held, in_thread=request.has_images)
            if kind := other_than_stream(held.reply.headers):
                held.close()
                raise self._faults.wrong_server(f"answered {kind} and no stream")
            return held

        reader = AnswerReader(self._faults, request.id, ref)
        return OpenAIAnswer(reader, tell, self._faults, open_stream, self._server.idle_timeout_s)

    def continues(self, request: GenerateRequest, ref: ModelRef) -> bool:
        """Tell whether the server goes on from a text: always with a prompt that is continued as it
        stands, with a chat where the operator says how."""
        return request.raw or self._server.continues != "no"

    async def embed(self, request: EmbedRequest, ref: ModelRef) -> Embeddings:
        """Embed; being cancelled closes the connection."""
        model = self._require_allowed(ref)

        def encode(dialect: Dialect) -> tuple[str, bytes]:
            return EMBEDDINGS, encode_embed(request, model, dialect)

        held = await self._open(encode, self._dialect, ref, in_thread=True)
        try:
            held.reply.expect_within(self._server.first_byte_timeout_s)
            answer = await self._read_whole(held.reply, max_answer_bytes(request))
        finally:
            held.close()
        return await anyio.to_thread.run_sync(read_embeddings, answer, request, ref, self._faults)

    async def load(
        self,
        ref: ModelRef,
        config: LoadConfig | None = None,
        *,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
    ) -> None:
        """Raise UnsupportedCapability: nobody but the server decides what it has in memory."""
        raise self._not_ours(ref)

    async def unload(self, ref: ModelRef, *, force: bool = False) -> None:
        """Raise UnsupportedCapability, as `load` does."""
        raise self._not_ours(ref)

    async def plan(self, ref: ModelRef, config: LoadConfig | None = None) -> LoadPlan:
        """Raise UnsupportedCapability, as `load` does."""
        raise self._not_ours(ref)

    async def status(self, ref: ModelRef | None = None) -> Sequence[ModelStatus]:
        """Return the models of the last listing, or the one of them that is asked for."""
        return [
            ModelStatus(each.info.ref, each.info.state)
            for each in self._listed.values()
            if ref in (None, each.info.ref)
        ]

    async def config(self, ref: ModelRef) -> ConfigReport:
        """Return a config in which nothing is decided."""
        return ConfigReport(ref, ModelConfig())

    async def configure(self, ref: ModelRef, change: ConfigChange) -> ConfigReport:
        """Raise UnsupportedCapability, as `load` does."""
        raise self._not_ours(ref)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._replicas.aclose()

    def _not_ours(self, ref: ModelRef) -> UnsupportedCapability:
        return UnsupportedCapability(
            f"{ref} is loaded, unloaded and configured where '{self.name}' runs, not here.",
            hint="Ask it for an answer as it is.",
            param="model",
        )

    def _require_allowed(self, ref: ModelRef) -> str:
        """Return the name by which the server knows a model; raises ModelNotFound."""
        if not is_allowed(ref, self._server.models):
            raise ModelNotFound(str(ref))
        listed = self._listed.get(ref)
        return ref.qualified_model if listed is None else listed.id

    async def _list(self, replica: Replica) -> list[Listed]:
        limit_s = self._server.control_timeout_s
        try:
            with anyio.fail_after(limit_s):
                status, body = await self._fetch(replica, limit_s)
        except TimeoutError as error:
            raise ProviderTimeout(
                self.name, f"{self.name} at {replica.url} did not answer within {limit_s:g} s."
            ) from error
        if status == 200:
            try:
                return read_listing(body, self.name, self._server.models)
            except ValueError as error:
                raise self._faults.wrong_server("answers no listing of models") from error
        if status in (404, 405) and (named := list_literally(self.name, self._server.models)):
            return named
        raise self._faults.of_status(status, body, None)

    async def _fetch(self, replica: Replica, limit_s: float) -> tuple[int, bytes]:
        try:
            reply = await self._replicas.get(replica, "/models", limit_s)
        except TransportError as error:
            raise self._faults.of_transport(error, False) from error
        try:
            self._require_plain(reply)
            return reply.status, await self._read_whole(reply, _MAX_LISTING_BYTES)
        finally:
            reply.close()

    async def _open(
        self,
        encode: Encode,
        dialect: Dialect,
        ref: ModelRef,
        held: HeldReply | None = None,
        *,
        in_thread: bool,
    ) -> HeldReply:
        """Ask, once more where the server refuses a field that it need not be sent; what it takes
        is kept in mind. `held` is the reply where it was asked in the `dialect`."""
        while True:
            if in_thread:
                path, body = await anyio.to_thread.run_sync(encode, dialect)
            else:
                path, body = encode(dialect)
            if held is None:
                held = await self._post(path, body, ref)
            else:
                held = await self._settle(held, path, body, ref)
            try:
                self._require_plain(held.reply)
                if held.reply.status == 200:
                    if dialect != self._dialect:
                        self._dialect = dialect
                    return held
                said = await held.reply.read_some(self._server.control_timeout_s, _MAX_ERROR_BYTES)
            except BaseException:
                held.close()
                raise
            held.close()
            status, headers = held.reply.status, held.reply.headers
            other = dialect.after(self._faults.said(said)) if status in (400, 422) else None
            if other is None:
                raise self._faults.of_status(
                    status, said, ref, path=path, retry_after=headers.get("retry-after")
                )
            dialect, held = other, None

    async def _settle(self, held: HeldReply, path: str, body: bytes, ref: ModelRef) -> HeldReply:
        """Return a reply that was begun once its head is there, or that of another server where the
        first has gone."""
        try:
            await held.arrive()
        except BaseException as error:
            held.close()
            if isinstance(error, Unreachable | ConnectTimedOut):
                return await self._post(path, body, ref)
            if isinstance(error, TransportError):
                raise self._faults.of_transport(error, False) from error
            raise
        return held

    async def _post(self, path: str, body: bytes, ref: ModelRef) -> HeldReply:
        try:
            return await self._replicas.post(path, body, ref, self._server.first_byte_timeout_s)
        except TransportError as error:
            raise self._faults.of_transport(error, False) from error

    def _require_plain(self, reply: Reply) -> None:
        if reply.is_encoded:
            raise self._faults.wrong_server("compressed its answer although that was not asked for")

    async def _read_whole(self, reply: Reply, max_bytes: int) -> bytes:
        answer = bytearray()
        while chunk := await self._read(reply):
            answer += chunk
            if len(answer) > max_bytes:
                raise self._faults.unreadable("sent an answer that is too long to be one")
        return bytes(answer)

    async def _read(self, reply: Reply) -> bytes:
        try:
            return await reply.read()
        except TransportError as error:
            raise self._faults.of_transport(error, True) from error
