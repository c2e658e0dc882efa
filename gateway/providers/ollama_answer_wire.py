"""One answer of an Ollama server: its place in memory, its request, and whether it was cut."""

import msgspec
from msgspec.structs import replace

from gateway.core.errors import ContextLengthExceeded, GatewayError
from gateway.core.events import Finished
from gateway.core.messages import GenerateRequest
from gateway.core.names import ModelRef
from gateway.core.telling import Over, Tell, tell_one
from gateway.providers.http1 import Reply
from gateway.providers.http1_wire import ReplyHead, TransportError
from gateway.providers.ollama_lifecycle_wire import ModelConfigs
from gateway.providers.ollama_memory_wire import FindSize, OllamaMemory, Stay
from gateway.providers.ollama_request_wire import encode_request
from gateway.providers.ollama_server_wire import OllamaServer
from gateway.providers.ollama_stream_wire import AnswerReader
from gateway.providers.ollama_truncation_wire import TruncationGuard, is_longer, too_long
from gateway.providers.pouring_wire import Answer


class Answering(msgspec.Struct, frozen=True):
    """What all answers of one server have in common. `truncate` is whether it may cut prompts of
    requests that do not say."""

    server: OllamaServer
    configs: ModelConfigs
    guard: TruncationGuard
    truncate: bool


class OllamaAnswer(Answer):
    """It is always asked for without cutting the prompt: only so Ollama tells that it would have
    to. Where that is allowed it is asked for once more."""

    __slots__ = (
        "_common",
        "_is_cut",
        "_may_cut",
        "_memory",
        "_num_ctx",
        "_ref",
        "_request",
        "_stay",
    )

    def __init__(
        self,
        common: Answering,
        request: GenerateRequest,
        ref: ModelRef,
        tell: Tell,
        memory: OllamaMemory,
    ) -> None:
        """`memory` is told of the use."""
        reader = AnswerReader(request.id, ref, joins=request.is_whole)
        super().__init__(reader, tell, common.server.timeouts.idle_s)
        self._common = common
        self._request = request
        self._ref = ref
        self._memory = memory
        self._stay: Stay | None = None
        self._num_ctx: int | None = None
        self._may_cut = common.truncate if request.truncate is None else request.truncate
        self._is_cut = False

    async def enter(self, find_size: FindSize) -> None:
        """Have the model counted as in use; `run` must follow."""
        self._stay = await self._memory.enter(self._ref, find_size)

    def begin_now(self, over: Over) -> bool:
        """Ask at once, as `begin`; False, and nothing was begun, where something is to be waited
        for, or is wrong."""
        server = self._common.server
        if not server.is_ready:
            return False
        try:
            path, body = self._encode()
        except GatewayError:
            return False
        self._stay = self._memory.enter_now(self._ref)
        if self._stay is None:
            return False
        self.begin(server.ask_now(path, body), over)
        return True

    def _encode(self) -> tuple[str, bytes]:
        """Return the route and the body; raises what is wrong with the request."""
        # As configured now: it may have changed while the request waited for room.
        request, num_ctx = self._request, self._common.configs.num_ctx(self._ref)
        self._num_ctx = num_ctx
        if num_ctx is not None and not self._may_cut and is_longer(request, num_ctx):
            raise too_long(self._ref)
        return encode_request(request, self._ref, num_ctx, truncate=self._is_cut)

    async def _arrive(self) -> Reply:
        try:
            return await self._arrive_once()
        except ContextLengthExceeded:
            if not self._may_cut:
                raise
        if self._reply is not None:
            self._reply.close()
            self._reply = None
        self._is_cut = True
        return await self._arrive_once()

    async def _arrive_once(self) -> Reply:
        server = self._common.server
        if self._reply is None:
            self._reply = await server.ask(*self._encode())
        await server.arrive(self._reply, self._ref)
        return self._reply

    def _is_plain(self, head: ReplyHead) -> bool:
        return head.status == 200 and not head.is_encoded

    def _describe(self, error: TransportError) -> GatewayError:
        return self._common.server.describe(error, self._reader.lines > 0)

    def _begun(self) -> None:
        assert self._stay is not None, "who answers is in memory"
        self._memory.answered(self._stay)

    def _close(self) -> None:
        if self._reply is not None:
            self._reply.close()
        if self._stay is not None:
            self._memory.leave(self._stay)

    def _is_doubtful(self, finished: Finished) -> bool:
        counted = finished.usage.prompt_tokens
        return self._common.guard.is_doubtful(self._request, self._ref, counted, self._num_ctx)

    async def _conclude(self, finished: Finished) -> None:
        counted = finished.usage.prompt_tokens
        is_cut = self._is_cut or await self._common.guard.was_cut(
            self._request, self._ref, counted, self._num_ctx
        )
        if is_cut and not self._may_cut:
            raise too_long(self._ref)
        await tell_one(self._tell, replace(finished, truncated=True) if is_cut else finished)
