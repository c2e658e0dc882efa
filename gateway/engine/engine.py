"""The Engine protocol, and the engine that runs transformers models."""

import weakref
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, Protocol, runtime_checkable

import anyio
import anyio.to_thread

from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import ContextLengthExceeded, EngineFailed, InvalidRequest
from gateway.core.events import Event, Finished
from gateway.core.messages import GenerateRequest
from gateway.core.names import ModelRef
from gateway.core.options import require_in_range
from gateway.engine.decoding.bridge import Channel
from gateway.engine.decoding.loaded import LoadedModel, Recipe
from gateway.engine.decoding.scheduler import Scheduler
from gateway.engine.decoding.sequence import Sequence
from gateway.engine.decoding.speech import prepare_speech, take_up
from gateway.engine.memory.memory import Memory, Unlimited
from gateway.engine.sampling.sampler import Sampler
from gateway.engine.weights.compute import SMALL_BYTES, Compute, Inline, run_aside
from gateway.engine.weights.packer import Packer
from gateway.engine.weights.runtime import give_back_memory, trim_memory

CHANNEL_EVENTS = 64


class Engine(Protocol):
    """One loaded model: what the manager knows of it. It is a Generator or an Embedder."""

    @property
    def memory_bytes(self) -> int:
        """What the model takes now, measured: weights, and the state of its sequences."""
        ...

    @property
    def first_bytes(self) -> int:
        """What its first short sequence takes besides; 0 where that is taken already."""
        ...

    @property
    def is_batched(self) -> bool:
        """Whether its sequences share the model's steps."""
        ...

    @property
    def recipe(self) -> Recipe | None:
        """What the load found out, for another load of the same files; None: nothing."""
        ...

    @property
    def packing(self) -> float | None:
        """How much of its weights is packed, 0 to 1, while there is more to pack; else None."""
        ...

    @property
    def alive(self) -> bool:
        """False once it can answer no more and must be loaded anew."""
        ...

    async def finish(self) -> None:
        """Do behind its answers what the load put off. Returns when that is done or given up, or
        goes on by itself; to be called once."""
        ...

    async def wait_ended(self) -> None:
        """Return once it can answer no more, whether it was closed or died."""
        ...

    async def aclose(self) -> None:
        """Stop and give the memory back; requests still running get EngineFailed."""
        ...


@runtime_checkable
class Generator(Engine, Protocol):
    """A model that writes text."""

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Yield `Waiting* Started Delta* Finished`. Closing it stops the model within a token, and
        returns only when the model no longer works for it."""
        ...


@runtime_checkable
class Embedder(Engine, Protocol):
    """A model that turns texts into vectors."""

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Return one vector for each input. Being cancelled stops the model within a batch, and
        returns only when the model no longer works for it.

        Raises ContextLengthExceeded, InvalidRequest, Overloaded, EngineFailed.
        """
        ...


class TransformersEngine:
    """A transformers model behind its scheduler. Create it on the event loop."""

    def __init__(
        self,
        ref: ModelRef,
        loaded: LoadedModel,
        *,
        max_active: int,
        max_queue: int,
        prompt_cache_bytes: int = 0,
        memory: Memory | None = None,
        compute: Compute | None = None,
        behind: Compute | None = None,
    ) -> None:
        """The state of sequences takes its bytes from `memory` (None: nobody counts them); past
        prompts take up to `prompt_cache_bytes` of them. `compute` is where its steps are done,
        `behind` where its weights are packed (None: in a thread of its own)."""
        self._ref = ref
        self._loaded: LoadedModel | None = loaded
        self._memory_bytes = loaded.memory_bytes
        self._is_batched = loaded.runner.is_batched
        self.first_bytes = loaded.first_bytes
        self.recipe: Recipe | None = loaded.recipe
        memory = memory or Unlimited()
        loaded.runner.attach(memory, prompt_cache_bytes)
        self._packer = Packer(str(ref), loaded.packing, memory, behind or Inline(threads=1))
        self._scheduler = Scheduler(
            str(ref),
            loaded.runner,
            max_active=max_active,
            max_queue=max_queue,
            compute=partial((compute or Inline()).run, is_small=loaded.memory_bytes < SMALL_BYTES),
        )

    @property
    def memory_bytes(self) -> int:
        return self._memory_bytes + self._scheduler.memory_bytes

    @property
    def is_batched(self) -> bool:
        return self._is_batched

    @property
    def packing(self) -> float | None:
        return self._packer.fraction

    @property
    def alive(self) -> bool:
        return self._scheduler.alive

    async def finish(self) -> None:
        await self._packer.run()

    async def wait_ended(self) -> None:
        await self._scheduler.ended.wait()

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        channel = Channel(limit=CHANNEL_EVENTS, on_room=self._scheduler.wake)
        sequence = await run_aside(partial(self._prepare, request, channel))
        self._scheduler.submit(sequence)
        try:
            while events := await channel.take():
                for event in events:
                    yield event
                    if isinstance(event, Finished):
                        return
            raise EngineFailed("The engine let go of this request.")
        finally:
            self._scheduler.cancel(sequence)
            # The lease on the model must outlast the worker's use of it: at most one step.
            with anyio.CancelScope(shield=True):
                await channel.wait_released()

    async def aclose(self) -> None:
        await self._packer.aclose()
        await anyio.to_thread.run_sync(self._scheduler.close)
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            model = weakref.ref(loaded.model)
            del loaded
            await anyio.to_thread.run_sync(_give_back, model)

    def _prepare(self, request: GenerateRequest, channel: Channel) -> Sequence:
        """Encode and check a request, so that nothing bad ever reaches the worker."""
        loaded = self._loaded
        if loaded is None:
            raise EngineFailed("The model was unloaded.")
        require_in_range(request.options)
        prompt = loaded.encoder.prompt(request)
        speech = prepare_speech(request, prompt.ids, loaded)
        begun = take_up(request, self._ref, prompt.ids, speech, loaded)
        room = _require_room([*prompt.ids, *begun.ids], loaded)
        return Sequence(
            self._ref,
            caller=request.caller,
            prompt=prompt,
            begun=begun,
            sampler=Sampler(loaded.sampling(request.options), prompt.ids, speech.constraint),
            speech=speech,
            end_ids=loaded.eos_ids | frozenset(request.options.stop_ids),
            max_tokens=min(request.max_tokens_left or room, room),
            channel=channel,
        )


def _give_back(model: weakref.ref[Any]) -> None:
    """Let the system have a model's memory; the garbage collector, in whose time no stream runs,
    is asked only where something still leads to the model."""
    if model() is None:
        trim_memory()
    else:
        give_back_memory()


def _require_room(prompt: list[int], loaded: LoadedModel) -> int:
    """Return how many tokens the answer may have."""
    if not prompt:
        raise InvalidRequest("The prompt is empty.", param="messages")
    if max(prompt) >= loaded.vocabulary_size:
        raise InvalidRequest("The prompt has tokens that the model does not know.", param="prompt")
    room = loaded.context_length - len(prompt)
    if room < 1:
        raise ContextLengthExceeded(
            f"The prompt has {len(prompt)} tokens; this model's context is "
            f"{loaded.context_length} tokens, the answer included.",
            param="messages",
        )
    return room
