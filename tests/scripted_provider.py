"""A provider whose streams follow a script: events, waits and errors, as each test writes them."""

from collections.abc import AsyncGenerator, Iterable, Sequence

import anyio

from gateway.core.embeddings import Embeddings, EmbedRequest, pack_vector
from gateway.core.errors import GatewayError, UnsupportedCapability
from gateway.core.events import Event, Finished, ReasoningDelta, Started, TextDelta, Usage
from gateway.core.loading import ConfigChange, ConfigReport, LoadConfig, LoadPlan, ModelStatus
from gateway.core.messages import GenerateRequest
from gateway.core.models import Capability, ModelInfo, Resident
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.core.telling import Tell, tell_all

ECHO = ModelRef("scripted", "echo")
EVERYTHING = tuple(Capability)

Step = Event | anyio.Event | BaseException
"""An event to say, one to wait for, or an error to raise."""


class Uncontrolled:
    """The half of a provider that loads and unloads, for those that leave that to others. What they
    say comes of their `stream`."""

    async def answer(self, request: GenerateRequest, ref: ModelRef, tell: Tell) -> None:
        await tell_all(self.stream(request, ref), tell)

    def stream(self, request: GenerateRequest, ref: ModelRef) -> AsyncGenerator[Event, None]:
        raise NotImplementedError

    async def load(
        self,
        ref: ModelRef,
        config: LoadConfig | None = None,
        *,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
    ) -> None:
        raise UnsupportedCapability(f"{ref} is not loaded from here.")

    async def unload(self, ref: ModelRef, *, force: bool = False) -> None:
        raise UnsupportedCapability(f"{ref} is not unloaded from here.")

    async def plan(self, ref: ModelRef, config: LoadConfig | None = None) -> LoadPlan:
        return LoadPlan(ref)

    async def status(self, ref: ModelRef | None = None) -> Sequence[ModelStatus]:
        return []

    async def config(self, ref: ModelRef) -> ConfigReport:
        raise UnsupportedCapability(f"{ref} has no config.")

    async def configure(self, ref: ModelRef, change: ConfigChange) -> ConfigReport:
        raise UnsupportedCapability(f"{ref} has no config.")


class ScriptedProvider(Uncontrolled):
    """A `core.ports.Provider` in memory; tells what it was asked and when a stream was closed."""

    def __init__(self, script: Iterable[Step] = (), *, name: str = "scripted") -> None:
        self.name = name
        self.script = script
        self.requests: list[GenerateRequest] = []
        self.listed: list[ModelInfo] = [
            ModelInfo(
                ModelRef(name, "echo"),
                state=ModelState.LOADED,
                size_bytes=1234,
                context_length=2048,
                capabilities=EVERYTHING,
                metadata=(("family", "parrot"),),
            )
        ]
        self.listing_error: Exception | None = None
        self.embed_requests: list[EmbedRequest] = []
        self.embed_gate: anyio.Event | None = None
        self.embed_error: GatewayError | None = None
        self.opened = anyio.Event()
        self.closed = anyio.Event()
        self.said = 0

    async def models(self) -> Sequence[ModelInfo]:
        if self.listing_error is not None:
            raise self.listing_error
        return self.listed

    async def stream(self, request: GenerateRequest, ref: ModelRef) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        self.opened.set()
        try:
            for step in self.script:
                if isinstance(step, anyio.Event):
                    await step.wait()
                elif isinstance(step, BaseException):
                    raise step
                else:
                    self.said += 1
                    yield step
        finally:
            self.closed.set()

    async def embed(self, request: EmbedRequest, ref: ModelRef) -> Embeddings:
        """Return for each input its place and its length, once the gate is open."""
        self.embed_requests.append(request)
        self.opened.set()
        try:
            if self.embed_gate is not None:
                await self.embed_gate.wait()
            if self.embed_error is not None:
                raise self.embed_error
        finally:
            self.closed.set()
        pairs = [(float(place), float(len(item))) for place, item in enumerate(request.inputs)]
        return Embeddings(ref, tuple(map(pack_vector, pairs)), Usage(7))

    async def resident(self) -> Sequence[Resident]:
        return []

    async def aclose(self) -> None:
        pass


class TurnProvider(ScriptedProvider):
    """Plays one script after the other; goes on from any text."""

    takes_text = True

    def __init__(self, turns: Sequence[Iterable[Step]], *, name: str = "scripted") -> None:
        super().__init__(name=name)
        self._turns = turns

    def continues(self, request: GenerateRequest, ref: ModelRef) -> bool:
        return self.takes_text

    def stream(self, request: GenerateRequest, ref: ModelRef) -> AsyncGenerator[Event, None]:
        self.script = self._turns[min(len(self.requests), len(self._turns) - 1)]
        return super().stream(request, ref)


def answer(*texts: str, reasoning: str = "") -> list[Step]:
    """Return the script of an answer that just works."""
    thoughts: list[Step] = [ReasoningDelta(reasoning)] if reasoning else []
    deltas = [TextDelta(text) for text in texts]
    usage = Usage(prompt_tokens=3, completion_tokens=len(thoughts) + len(deltas))
    return [Started(ECHO, prompt_tokens=3), *thoughts, *deltas, Finished("stop", usage)]
