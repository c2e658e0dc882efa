"""The engine that embeds: the inputs of all requests to one model share its batches.

One worker does all that touches the model. Callers take turns, and so do the requests of each: one
with a thousand inputs does not hold up one with a single input.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

import anyio
import anyio.to_thread

from gateway.core.embeddings import (
    Embeddings,
    EmbedRequest,
    cut_vector,
    pack_vector,
    require_dimensions,
)
from gateway.core.errors import EngineFailed, GatewayError, NoRoom, Overloaded
from gateway.core.events import Usage
from gateway.core.names import ModelRef
from gateway.engine.decoding.bridge import LoopEvent
from gateway.engine.decoding.fair_queue import FairQueue
from gateway.engine.decoding.scheduler import RELIEF_S
from gateway.engine.embedding.batching import choose_batch
from gateway.engine.embedding.loader import LoadedEmbedder
from gateway.engine.memory.memory import Memory, Unlimited
from gateway.engine.weights.compute import SMALL_BYTES, Compute, Inline, run_aside
from gateway.engine.weights.runtime import give_back_memory

logger = logging.getLogger(__name__)

_TRIES = 10
"""How often memory is asked for, over `RELIEF_S`."""


class _Job:
    """One request. `lengths` and `order` are those of its inputs that wait, shortest first."""

    def __init__(self, caller: str, inputs: list[list[int]], dimensions: int | None) -> None:
        self.caller = caller
        self.inputs = inputs
        self.dimensions = dimensions
        self.order = sorted(range(len(inputs)), key=lambda index: len(inputs[index]))
        self.lengths = [len(inputs[index]) for index in self.order]
        self.vectors: dict[int, bytes] = {}
        self.error: GatewayError | None = None
        self.cancelled = False
        self.settled = anyio.Event()

    @property
    def is_over(self) -> bool:
        return self.cancelled or self.error is not None or len(self.vectors) == len(self.inputs)

    def take(self, part: slice) -> list[int]:
        """Return the indexes of a part of what waits; it waits no more."""
        taken = self.order[part]
        del self.order[part], self.lengths[part]
        return taken


class EmbeddingEngine:
    """A model behind its worker. Create it on the event loop; `max_queue` requests may wait.

    Batches of long inputs take their bytes from `memory` (None: nobody counts them); `compute` is
    where they are computed (None: in a thread of its own).
    """

    first_bytes = 0
    recipe = None
    packing = None

    def __init__(
        self,
        ref: ModelRef,
        loaded: LoadedEmbedder,
        *,
        max_queue: int,
        memory: Memory | None = None,
        compute: Compute | None = None,
    ) -> None:
        self._ref = ref
        self._loaded: LoadedEmbedder | None = loaded
        self._memory_bytes = loaded.memory_bytes
        self._is_batched = loaded.batch_tokens > 0
        self._worker = _Worker(
            str(ref),
            loaded,
            max_queue=max_queue,
            memory=memory or Unlimited(),
            compute=partial((compute or Inline()).run, is_small=loaded.memory_bytes < SMALL_BYTES),
        )

    @property
    def memory_bytes(self) -> int:
        return self._memory_bytes

    @property
    def is_batched(self) -> bool:
        return self._is_batched

    @property
    def alive(self) -> bool:
        return self._worker.alive

    async def finish(self) -> None:
        pass

    async def wait_ended(self) -> None:
        await self._worker.ended.wait()

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Return the vectors; see `gateway.engine.engine.Embedder`."""
        job = await run_aside(partial(self._prepare, request))
        self._worker.submit(job)
        try:
            await job.settled.wait()
        finally:
            self._worker.cancel(job)
            # The lease on the model must outlast the worker's use of it: at most one batch.
            with anyio.CancelScope(shield=True):
                await job.settled.wait()
        if job.error is not None:
            raise job.error
        vectors = tuple(job.vectors[index] for index in range(len(job.inputs)))
        return Embeddings(self._ref, vectors, Usage(sum(map(len, job.inputs))))

    async def aclose(self) -> None:
        """Stop and give the memory back; requests still there get EngineFailed."""
        await anyio.to_thread.run_sync(self._worker.close)
        self._loaded = None
        await anyio.to_thread.run_sync(give_back_memory)

    def _prepare(self, request: EmbedRequest) -> _Job:
        """Encode and check a request, so that nothing bad ever reaches the worker."""
        loaded = self._loaded
        if loaded is None:
            raise EngineFailed("The model was unloaded.")
        if request.dimensions is not None:
            require_dimensions(request.dimensions, loaded.dimensions)
        return _Job(request.caller, loaded.encoder.encode(request), request.dimensions)


class _Worker:
    """The thread. `submit` and `cancel` are for the event loop.

    An input that raises fails its own request alone. Should the loop itself die, every request
    gets EngineFailed, `alive` turns false, and `ended` is set, as it is after `close`.
    """

    def __init__(
        self,
        name: str,
        loaded: LoadedEmbedder,
        *,
        max_queue: int,
        memory: Memory,
        compute: Callable[[Callable[[], None]], None],
    ) -> None:
        self._memory = memory
        self._model: LoadedEmbedder | None = loaded
        self._batch_tokens = loaded.batch_tokens
        self._max_queue = max_queue
        self._do = compute
        self._jobs: FairQueue[_Job] = FairQueue()
        self._condition = threading.Condition()
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self.alive = True
        self.ended = LoopEvent()
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)
        self._thread.start()

    def submit(self, job: _Job) -> None:
        """Raises Overloaded when too many wait, EngineFailed when the worker is gone."""
        with self._condition:
            if not self.alive or self._closing:
                raise EngineFailed("The engine of this model stopped.")
            if len(self._jobs) > self._max_queue:
                raise Overloaded(f"{len(self._jobs)} requests already wait for this model.")
            self._jobs.push(job, self._max_queue + 1)
            self._condition.notify()

    def cancel(self, job: _Job) -> None:
        """Let the worker drop the job before its next batch; harmless after its end."""
        with self._condition:
            job.cancelled = True
            self._condition.notify()

    def close(self) -> None:
        """Stop; jobs still there get EngineFailed. Blocking: at most one batch."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        reason = "The model was unloaded."
        try:
            while batch := self._next_batch():
                self._answer(batch)
        except BaseException:
            # Not a fault of one input: those are caught in _compute.
            logger.exception("the engine's loop died")
            reason = "The engine of this model died."
        finally:
            self._model = None
            self._end_all(reason)
            self.ended.set()

    def _next_batch(self) -> list[tuple[_Job, int]]:
        """Return what is computed next, waiting for it; nothing when the worker shall stop."""
        with self._condition:
            while not self._closing:
                self._settle(self._jobs.remove(lambda job: job.is_over))
                if self._jobs:
                    jobs = list(self._jobs)
                    parts = choose_batch([job.lengths for job in jobs], self._batch_tokens)
                    pairs = list(zip(jobs, parts, strict=True))
                    self._jobs.rotate()
                    return [(job, index) for job, part in pairs for index in job.take(part)]
                self._condition.wait()
        return []

    def _answer(self, batch: Sequence[tuple[_Job, int]]) -> None:
        """Compute a batch in memory that is taken before, or its inputs one by one where there is
        too little; one for which there is too little alone fails."""
        assert self._model is not None
        longest = max(len(job.inputs[index]) for job, index in batch)
        extra_bytes = self._model.extra_bytes(len(batch), longest)
        if not extra_bytes:
            self._do(partial(self._compute, batch))
        elif self._borrow(extra_bytes):
            try:
                self._do(partial(self._compute, batch))
            finally:
                self._memory.release(extra_bytes)
        elif len(batch) > 1:
            for job, index in batch:
                if not job.is_over:  # another input of it, or its caller, ended it meanwhile
                    self._answer([(job, index)])
        elif not self._closing:
            batch[0][0].error = NoRoom(
                f"There is no memory for an input of {longest} tokens: it takes {extra_bytes} "
                "bytes while it is computed.",
                hint="Send shorter texts, or let other models go.",
            )

    def _borrow(self, size_bytes: int) -> bool:
        """Take memory for a while; other models that are idle have a moment to make room."""
        for _ in range(_TRIES):
            if self._memory.reserve(size_bytes):
                return True
            with self._condition:
                if self._condition.wait_for(lambda: self._closing, RELIEF_S / _TRIES):
                    break
        return False

    def _compute(self, batch: Sequence[tuple[_Job, int]]) -> None:
        """Compute a batch; should it fail, find out whose fault it was, and let only him fail."""
        assert self._model is not None
        try:
            vectors = self._model.run([job.inputs[index] for job, index in batch]).tolist()
        except Exception:
            if len(batch) > 1:
                logger.exception("a batch failed; its inputs go on one by one")
                for pair in batch:
                    self._compute([pair])
            else:
                logger.exception("an input failed")
                batch[0][0].error = EngineFailed("The model failed on this request.")
            return
        for (job, index), vector in zip(batch, vectors, strict=True):
            job.vectors[index] = pack_vector(cut_vector(vector, job.dimensions))

    def _settle(self, jobs: Sequence[_Job]) -> None:
        if jobs and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_tell, jobs)

    def _end_all(self, reason: str) -> None:
        with self._condition:
            self.alive = False
            left = self._jobs.remove(lambda job: True)
            for job in left:
                if not job.is_over:
                    job.error = EngineFailed(reason)
            self._settle(left)


def _tell(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        job.settled.set()
