"""Replays decode steps: a step of a few tokens is hundreds of small kernels, and starting each of
them from Python takes longer than they run.

A step that only decodes is computed by a `StaticStep`, which is recorded once for each size and
then started whole. Everything else, and the first steps of each size, go the eager way.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch

from gateway.engine.decoding.static_step import Bucket, StaticStep, choose_bucket
from gateway.engine.memory.memory import Memory, Unlimited
from gateway.engine.weights.runtime import gpu_recording

if TYPE_CHECKING:
    from torch import Tensor

    from gateway.engine.decoding.kv_cache import SlotCache
    from gateway.engine.decoding.stack import Stack
    from gateway.engine.decoding.varlen import Kernel
    from gateway.engine.decoding.view import View

logger = logging.getLogger(__name__)

MOST_GRAPHS = 16
"""Those used last are kept."""
CAPTURE_AFTER = 4
"""Recording takes as long as some steps do: it is worth it for a size that is met again."""


class Replay(Protocol):
    def __call__(self) -> Tensor:
        """Compute the step anew; the tensor returned is overwritten by the next replay."""
        ...


class Recorder(Protocol):
    """Records steps, in memory that all its recordings share."""

    @property
    def memory_bytes(self) -> int:
        """What all recordings together hold."""
        ...

    def record(self, step: StaticStep) -> Replay:
        """Return the recording of a step whose buffers are filled; whatever it raises, the step can
        still be computed."""
        ...


class DecodeGraphs:
    """The recordings of one model's decode steps. Used by one thread.

    They point into the cache's tensors, so they go when the cache gets others.
    """

    def __init__(
        self,
        stack: Stack,
        cache: SlotCache,
        start: Callable[[], Recorder],
        device: torch.device,
        kernel: Kernel | None = None,
    ) -> None:
        """`start` returns a new recorder, with memory of its own."""
        self.memory: Memory = Unlimited()
        self.memory_bytes = 0
        self._stack = stack
        self._cache = cache
        self._start = start
        self._device = device
        self._kernel = kernel
        self._recorder: Recorder | None = None
        self._graphs: OrderedDict[Bucket, tuple[StaticStep, Replay]] = OrderedDict()
        self._met: Counter[Bucket] = Counter()
        self._allocations = cache.allocations
        self._has_room = True
        self._works = True

    def logits(self, ids: Sequence[int], view: View, wanted: Sequence[int]) -> Tensor | None:
        """Return the logits of the `wanted` tokens of a flat batch, for which the cache was told to
        make room; None for a step that must go the eager way. It then has changed nothing.
        """
        self.drop_stale()
        if view.chunks or not self._works:
            return None
        cache = self._cache
        bucket = choose_bucket(view.last_row + 1, view.longest, cache.rows, cache.capacity)
        row_ids, positions = [0] * bucket.rows, [0] * bucket.rows
        for slot in cache.slots[: bucket.rows]:
            positions[slot.row] = slot.length
        if max(positions) >= cache.capacity:
            return None  # of one that waits, there is no place after its last token
        for row, token in zip(view.single_rows, ids, strict=True):
            row_ids[row] = token
        replay = self._replay(bucket, row_ids, positions)
        if replay is None:
            return None
        asking = [view.single_rows[index] for index in wanted]
        return replay()[torch.tensor(asking, dtype=torch.long, device=self._device)]

    def drop_stale(self) -> None:
        """Drop what points into tensors that the cache no longer has."""
        if self._allocations != self._cache.allocations:
            self.clear()
            self._allocations = self._cache.allocations
            self._has_room = True

    def clear(self) -> bool:
        """Drop all recordings; tell whether that gave memory back."""
        given_back = self.memory_bytes
        self._graphs.clear()
        self._met.clear()
        self._recorder = None
        self.memory_bytes = 0
        self.memory.release(given_back)
        return given_back > 0

    def _replay(
        self, bucket: Bucket, ids: Sequence[int], positions: Sequence[int]
    ) -> Replay | None:
        """Return what computes this step, its buffers filled."""
        if bucket in self._graphs:
            self._graphs.move_to_end(bucket)
            step, replay = self._graphs[bucket]
            step.fill(ids, positions)
            return replay
        self._met[bucket] += 1
        if self._met[bucket] <= CAPTURE_AFTER or not self._has_room:
            return None
        try:
            step = StaticStep(self._stack, self._cache, bucket, self._device, self._kernel)
            step.fill(ids, positions)
            return self._record(bucket, step)
        except Exception as error:  # whatever cannot be recorded can be computed
            logger.warning("decode steps are not recorded: %s: %s", type(error).__name__, error)
            self._works = False
            self.clear()
            return None

    def _record(self, bucket: Bucket, step: StaticStep) -> Replay | None:
        if len(self._graphs) == MOST_GRAPHS:
            oldest, _ = self._graphs.popitem(last=False)
            del self._met[oldest]
        recorder = self._recorder = self._recorder or self._start()
        replay = recorder.record(step)
        more_bytes = max(0, recorder.memory_bytes - self.memory_bytes)
        if not self.memory.reserve(more_bytes, is_needed=False):
            self.clear()
            self._has_room = False
            return None
        self.memory_bytes += more_bytes
        self._graphs[bucket] = step, replay
        return replay


class ReplayDiffers(Exception):
    """A recording computes something else than the step that was recorded."""


class CudaRecorder:
    """Records steps as CUDA graphs, which share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _side_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def memory_bytes(self) -> int:
        segments = torch.cuda.memory_snapshot(  # type: ignore[no-untyped-call]
            self._pool, include_traces=False
        )
        return sum(segment["total_size"] for segment in segments)

    def record(self, step: StaticStep) -> Replay:
        """Raises ReplayDiffers, and what torch raises for a step that cannot be recorded."""
        # The stream is set here as well: torch leaves its own set when a recording fails.
        with gpu_recording, torch.cuda.device(self._device), torch.inference_mode():
            self._stream.wait_stream(torch.cuda.current_stream())
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(self._stream):
                # Libraries set themselves up in the first call, which cannot be recorded.
                expected = step()
                # Other models' threads may allocate meanwhile, hence "thread_local".
                with torch.cuda.graph(
                    graph, self._pool, self._stream, capture_error_mode="thread_local"
                ):
                    output = step()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph.replay()
            _require_alike(output, expected)

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream that steps are recorded on: libraries keep memory for each for ever."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _require_alike(found: Tensor, expected: Tensor) -> None:
    tolerance = 1e-4 if expected.dtype == torch.float32 else 5e-2
    found, expected = found.float(), expected.float()
    scale = float(expected.abs().max())
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
        raise ReplayDiffers(f"by {float((found - expected).abs().max()):.3g}")
