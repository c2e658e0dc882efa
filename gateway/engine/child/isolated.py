"""Engines in processes of their own, so that their deaths are nobody else's."""

from collections.abc import AsyncGenerator, Mapping

from anyio.abc import TaskGroup

from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import EngineFailed
from gateway.core.events import Event, Finished
from gateway.core.messages import GenerateRequest
from gateway.engine.child.keeper import Keeper
from gateway.engine.child.wire import Ask, AskVectors
from gateway.engine.files.progress import LoadProgress
from gateway.engine.memory.memory import Memory, Unlimited
from gateway.engine.opening import EngineSpec

PROCESS_BYTES = 400 * 2**20
"""What a process with torch and transformers takes before any model is in it: 392 MB were measured
with a model of 72 KB."""


async def open_isolated(
    spec: EngineSpec,
    progress: LoadProgress | None = None,
    memory: Memory | None = None,
    *,
    task_group: TaskGroup,
    environment: Mapping[str, str],
    memory_limit_bytes: int = 0,
) -> "IsolatedGenerator | IsolatedEmbedder":
    """Load a model in a new process and return the engine that is there; see `open_engine`.

    The process lives in `task_group` and never raises into it. Cancelling this, or `progress`,
    kills the process.

    Raises ModelLoadFailed, also when the process dies; ModelUnloaded when `progress` was cancelled.
    """
    progress = progress or LoadProgress()
    progress.check()
    kind = IsolatedEmbedder if spec.files.card.embeds else IsolatedGenerator
    engine = kind(spec, progress, memory or Unlimited(), memory_limit_bytes)
    progress.on_cancel = engine.give_up
    try:
        await task_group.start(engine.run, environment, name=f"process of {spec.ref}")
    finally:
        progress.on_cancel = None
    return engine


class IsolatedGenerator(Keeper):
    """A model that writes text, at the other end of a socket."""

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Yield what the engine there says; see `gateway.engine.engine.Generator`."""
        async with self.ask(lambda number: Ask(number, request), Event) as inbox:
            while events := await inbox.take():
                for event in events:
                    yield event
                    if isinstance(event, Finished):
                        return
            raise EngineFailed("The engine let go of this request.")


class IsolatedEmbedder(Keeper):
    """A model that embeds, at the other end of a socket."""

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Return what the engine there says; see `gateway.engine.engine.Embedder`."""
        async with self.ask(lambda number: AskVectors(number, request), Embeddings) as inbox:
            said: list[Embeddings] = await inbox.take()
            for embeddings in said:
                return embeddings
            raise EngineFailed("The engine let go of this request.")
