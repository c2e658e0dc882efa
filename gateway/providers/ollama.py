"""The Ollama provider: the `ollama` package lists models, a lean client of our own does the rest.

Owns the connections to one Ollama server and their deadlines. What goes over them is described in
the `ollama_*_wire` modules.
"""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from msgspec.structs import replace

from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import (
    GatewayError,
    ProviderTimeout,
    ProviderUnavailable,
    UnsupportedCapability,
)
from gateway.core.loading import ConfigChange, ConfigReport, LoadConfig, LoadPlan, ModelStatus
from gateway.core.messages import GenerateRequest
from gateway.core.models import ModelInfo, Resident
from gateway.core.names import ModelRef
from gateway.core.ports import ModelObserver
from gateway.core.routing import require_capabilities
from gateway.core.states import ModelState
from gateway.core.telling import Over, Tell
from gateway.providers import ProviderContext
from gateway.providers.http1 import Http1Client
from gateway.providers.ollama_answer_wire import Answering, OllamaAnswer
from gateway.providers.ollama_control_wire import ControlPlane
from gateway.providers.ollama_embed_wire import encode_embed, max_answer_bytes, read_embeddings
from gateway.providers.ollama_fault_wire import PROVIDER
from gateway.providers.ollama_ledger_wire import SharedMemory
from gateway.providers.ollama_lifecycle_wire import (
    ModelConfigs,
    find_running,
    require_loadable,
)
from gateway.providers.ollama_listing_wire import (
    Running,
    Tag,
    Traits,
    index_running,
    name_key,
    read_info,
    read_ref,
    read_resident,
)
from gateway.providers.ollama_memory_wire import (
    Elsewhere,
    OllamaMemory,
    find_devices,
)
from gateway.providers.ollama_server_wire import OllamaServer, OllamaTimeouts
from gateway.providers.ollama_states_wire import ModelStates
from gateway.providers.ollama_truncation_wire import TruncationGuard

if TYPE_CHECKING:
    from gateway.settings import Settings

_SHOWS_AT_ONCE = 4
_UNLOAD_LOOK_S = 0.2
_HEADERS = {
    "Accept": "application/x-ndjson",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": "model-gateway",
}


def create(settings: "Settings", context: ProviderContext) -> "OllamaService":
    """Return the provider for the Ollama server that the settings name."""
    timeouts = OllamaTimeouts(
        connect_s=settings.ollama_connect_timeout_s,
        first_byte_s=settings.ollama_first_byte_timeout_s,
        idle_s=settings.ollama_idle_timeout_s,
        control_s=settings.ollama_control_timeout_s,
    )
    return OllamaService(
        settings.ollama_host,
        timeouts,
        num_ctx=settings.ollama_num_ctx or None,
        truncate=settings.ollama_truncate,
        observe=context.observe,
        memory=_choose_memory(settings, context),
        max_asked=settings.max_asked,
    )


def _choose_memory(settings: "Settings", context: ProviderContext) -> OllamaMemory:
    if not settings.ollama_is_neighbour:
        return Elsewhere()
    return SharedMemory(
        context.ledger,
        context.task_group,
        devices=find_devices(settings.ollama_device),
        wait_s=settings.hf_place_wait_s,
        clock=context.clock,
        now=time,
    )


class OllamaService:
    """One Ollama server. Build it on the event loop that will use it.

    `num_ctx` is sent with every request when the operator sets it, and never otherwise: a value
    that changes makes Ollama load the model anew. `truncate` is whether it may cut prompts of
    requests that do not say.
    """

    name = PROVIDER

    def __init__(
        self,
        base_url: str,
        timeouts: OllamaTimeouts | None = None,
        *,
        num_ctx: int | None = None,
        truncate: bool = False,
        now: Callable[[], float] = time,
        observe: ModelObserver = lambda change: None,
        memory: OllamaMemory | None = None,
        max_asked: int = sys.maxsize,
    ) -> None:
        """`now` is Unix seconds; `observe` is told what this service does to models; without
        `memory` theirs is Ollama's own business. Ollama is at `max_asked` requests at the most."""
        self._base_url = base_url.rstrip("/")
        self._timeouts = timeouts or OllamaTimeouts()
        self._configs = ModelConfigs(num_ctx)
        self._states = ModelStates(observe)
        self._now = now
        self._control = ControlPlane(self._base_url, self._timeouts.control_s)
        self._guard = TruncationGuard(self._control)
        self._http = Http1Client(
            self._base_url, _HEADERS, connect_s=self._timeouts.connect_s, max_asked=max_asked
        )
        self._server = OllamaServer(self._http, self._base_url, self._timeouts)
        self._answering = Answering(self._server, self._configs, self._guard, truncate)
        self._traits: dict[str, Traits] = {}
        self._listed: dict[str, ModelInfo] = {}
        self._memory = memory or Elsewhere()
        self._memory.serve(self._look, self.unload)

    async def version(self) -> str:
        """Return the server's version."""
        return await self._control.version()

    async def models(self) -> Sequence[ModelInfo]:
        """Return the installed models; raises ProviderError within `control_s`.

        Capabilities that neither the listing nor a look at the model could tell in that time are
        left empty, which means unknown.
        """
        deadline = anyio.current_time() + self._timeouts.control_s
        async with self._looking() as note:
            tags, running = await self._control.tags_and_running()
            await note(running)
        await self._learn_traits(tags, deadline)
        in_memory = index_running(running)
        self._guard.learn(in_memory)
        infos = {}
        for tag in tags:
            ref = read_ref(tag.model or tag.name)
            if ref is not None:
                key = name_key(ref)
                traits = self._traits.get(tag.digest or "")
                infos[key] = self._states.over(read_info(ref, tag, in_memory.get(key), traits))
        self._listed = infos
        return list(infos.values())

    async def resident(self) -> Sequence[Resident]:
        """Return the models in Ollama's memory; it does not tell who uses them."""
        found = (read_resident(model) for model in await self._look())
        return [resident for resident in found if resident is not None]

    async def answer(self, request: GenerateRequest, ref: ModelRef, tell: Tell) -> None:
        """Generate; being cancelled closes the connection, Ollama's only way to cancel.

        Raises ModelTooLarge and NoRoom where the model is not in memory, and finds no room in the
        one that it shares with the gateway's.
        """
        await self._answer(request, ref, tell, self._memory)

    def begin(
        self, request: GenerateRequest, ref: ModelRef, tell: Tell, over: Over
    ) -> Callable[[], None] | None:
        """Do as `answer`, without waiting; None where a model is not in memory, no connection is
        kept, or the request is refused."""
        try:
            answer = self._new_answer(request, ref, tell, self._memory)
        except GatewayError:
            return None
        return answer.cancel if answer.begin_now(over) else None

    async def _answer(
        self, request: GenerateRequest, ref: ModelRef, tell: Tell, memory: OllamaMemory
    ) -> None:
        """Do as `answer`; `memory` is told of the use."""
        answer = self._new_answer(request, ref, tell, memory)
        await answer.enter(self._find_size)
        await answer.run()

    def _new_answer(
        self, request: GenerateRequest, ref: ModelRef, tell: Tell, memory: OllamaMemory
    ) -> OllamaAnswer:
        request = self._configs.apply(request, ref)
        # Ollama's own refusal comes after it has loaded the model: look first.
        if known := self._listed.get(name_key(ref)):
            require_capabilities(request, known)
        return OllamaAnswer(self._answering, request, ref, tell, memory)

    def state_of(self, ref: ModelRef) -> ModelState | None:
        return self._memory.state_of(ref)

    def continues(self, request: GenerateRequest, ref: ModelRef) -> bool:
        """Every model there goes on from a text: a last message of the assistant is open."""
        return True

    async def delete(self, ref: ModelRef) -> None:
        """Have Ollama remove the model's files; raises ModelNotFound and ProviderError."""
        await self._control.delete(ref)

    async def load(
        self,
        ref: ModelRef,
        config: LoadConfig | None = None,
        *,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
    ) -> None:
        """Have Ollama load the model: a request without a prompt. Raises what `answer` does, and
        UnsupportedCapability for a config or a pin that Ollama cannot follow; then the config is
        as it was."""
        with self._configs.changed(ref, ConfigChange(load=config, pinned=pinned)):
            if await self._running(ref) is not None:
                await self._run_empty(ref, keep_alive_s, self._memory)
                return
            with self._states.loading(*self._shown(ref)):
                await self._run_empty(ref, keep_alive_s, self._memory)

    async def unload(self, ref: ModelRef, *, force: bool = False) -> None:
        """Have Ollama unload the model once nobody uses it; returns when it is gone.

        Raises UnsupportedCapability for `force`, and ProviderTimeout when it is still in use after
        the time that a load may take.
        """
        if force:
            raise UnsupportedCapability(
                f"{ref} cannot be taken from its readers: Ollama waits for them.", param="force"
            )
        if await self._running(ref) is None:
            self._states.forget_failure(ref)
            return
        with self._states.unloading(*self._shown(ref)):
            await self._run_empty(ref, 0, Elsewhere())
            await self._wait_gone(ref)

    async def _wait_gone(self, ref: ModelRef) -> None:
        try:
            with anyio.fail_after(self._timeouts.first_byte_s):
                while await self._running(ref) is not None:  # noqa: ASYNC110 - only asking tells
                    await anyio.sleep(_UNLOAD_LOOK_S)
        except TimeoutError as error:
            raise ProviderTimeout(PROVIDER, f"Ollama still uses {ref}.") from error

    def _shown(self, ref: ModelRef) -> tuple[ModelRef, int | None]:
        """Return a model's ref as the listing spells it, and the size of its files, if known."""
        listed = self._listed.get(name_key(ref))
        return (ref, None) if listed is None else (listed.ref, listed.size_bytes)

    async def plan(self, ref: ModelRef, config: LoadConfig | None = None) -> LoadPlan:
        """Return what is known of a load; without a memory that is shared, who goes for it only
        Ollama knows."""
        require_loadable(ref, config)
        running = await self._running(ref)
        if running is not None:
            resident = read_resident(running)
            is_same = config is None or config.context_length in (None, running.context_length)
            need_bytes = resident.memory_bytes if resident else None
            return LoadPlan(ref, need_bytes=need_bytes, fits=True, already_loaded=is_same)
        await self._control.traits(ref.model, ref)  # raises for a model that is not installed
        return await self._memory.plan(ref, await self._find_size(ref))

    async def status(self, ref: ModelRef | None = None) -> Sequence[ModelStatus]:
        """Return the models in Ollama's memory, or the one of them that is asked for."""
        running = await self._look()
        found = [self._configs.status(model, self._now()) for model in running]
        return [
            replace(each, ref=ref or each.ref)
            for each in found
            if each and (ref is None or name_key(each.ref) == name_key(ref))
        ]

    async def config(self, ref: ModelRef) -> ConfigReport:
        return self._configs.report(ref, await self._running(ref))

    async def configure(self, ref: ModelRef, change: ConfigChange) -> ConfigReport:
        running = await self._running(ref)
        self._configs.change(ref, change)
        return self._configs.report(ref, running)

    async def _running(self, ref: ModelRef) -> Running | None:
        return find_running(await self._look(), ref)

    async def _look(self) -> Sequence[Running]:
        """Return the models in Ollama's memory."""
        async with self._looking() as note:
            running = await self._control.running()
            await note(running)
        return running

    @asynccontextmanager
    async def _looking(self) -> AsyncIterator[Callable[[Sequence[Running]], Awaitable[None]]]:
        """Give what is to be told of an answer of `/api/ps` that is asked for in the block."""
        since = self._memory.mark()
        try:
            yield partial(self._memory.note, since=since)
        except ProviderUnavailable as error:
            if isinstance(error.__cause__, ConnectionError):
                self._memory.forget(since)  # nobody listens there: its models went with it
            raise

    async def _find_size(self, ref: ModelRef) -> int | None:
        """Return the size of a model's file as listed; None where nobody knows."""
        if name_key(ref) not in self._listed:
            with suppress(GatewayError):
                await self.models()
        listed = self._listed.get(name_key(ref))
        return listed.size_bytes if listed else None

    async def _run_empty(
        self, ref: ModelRef, keep_alive_s: float | None, memory: OllamaMemory
    ) -> None:
        request = GenerateRequest(
            id="control", model=str(ref), prompt="", keep_alive_s=keep_alive_s
        )
        await self._answer(request, ref, lambda _: None, memory)

    async def embed(self, request: EmbedRequest, ref: ModelRef) -> Embeddings:
        """Embed; being cancelled closes the connection, on which Ollama stops."""
        body = await anyio.to_thread.run_sync(
            encode_embed, request, ref, self._configs.num_ctx(ref)
        )
        stay = await self._memory.enter(ref, self._find_size)
        try:
            answer = await self._server.fetch("/api/embed", body, ref, max_answer_bytes(request))
            self._memory.answered(stay)
        finally:
            self._memory.leave(stay)
        return await anyio.to_thread.run_sync(read_embeddings, answer, request, ref)

    async def aclose(self) -> None:
        """Close all connections."""
        self._memory.close()
        await self._http.aclose()
        await self._control.aclose()

    async def _learn_traits(self, tags: Sequence[Tag], deadline: float) -> None:
        """Look at the models that the listing says too little of, until `deadline`."""
        installed = {tag.digest for tag in tags}
        self._traits = {key: kept for key, kept in self._traits.items() if key in installed}
        unknown = {
            tag.digest: tag.model or tag.name or ""
            for tag in tags
            if tag.digest and tag.capabilities is None and tag.digest not in self._traits
        }
        if not unknown:
            return
        limiter = anyio.Semaphore(_SHOWS_AT_ONCE)

        async def learn(digest: str, model: str) -> None:
            # One model that cannot be looked at must not hide the others.
            async with limiter:
                with suppress(GatewayError):
                    self._traits[digest] = await self._control.traits(model)

        with anyio.CancelScope(deadline=deadline):
            async with anyio.create_task_group() as tasks:
                for digest, model in unknown.items():
                    tasks.start_soon(learn, digest, model)
