"""Runs sequences through a model: all of them in one forward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gateway.core.errors import GatewayError
from gateway.engine.memory.memory import FIRST_CAPACITY, Memory, Unlimited

if TYPE_CHECKING:
    from torch import Tensor

    from gateway.engine.decoding.fused import FusedSteps
    from gateway.engine.decoding.graphs import DecodeGraphs, Recorder
    from gateway.engine.decoding.kv_cache import Slot, SlotCache
    from gateway.engine.decoding.prompt_cache import PromptCache
    from gateway.engine.decoding.stack import Stack
    from gateway.engine.decoding.varlen import Kernel
    from gateway.engine.weights.gemv import Gemv


logger = logging.getLogger(__name__)


class Feed(NamedTuple):
    """New tokens of one sequence; `asks` tells whether the logits after the last are wanted."""

    place: Any
    ids: list[int]
    asks: bool = True


class Runner(Protocol):
    """Keeps the state of sequences in one model. Used by one thread."""

    is_batched: bool
    """Whether sequences share forward passes."""

    @property
    def memory_bytes(self) -> int:
        """What the sequences take now."""
        ...

    @property
    def own_bytes(self) -> int:
        """What it takes itself as long as the model is loaded, beside the weights."""
        ...

    def first_bytes(self) -> int:
        """Return what a first short sequence takes: without that much nothing can be answered.

        May compute a few tokens to learn it; to be called where no sequence is open.
        """
        ...

    def attach(self, memory: Memory, prompt_cache_bytes: int) -> None:
        """Take memory from `memory` from now on; keep at most so many bytes of past prompts."""
        ...

    def open(self, inputs: Mapping[str, Any] | None = None) -> Any:
        """Return the place of a new sequence; `inputs` go with the ids of a prompt with images."""
        ...

    def release(self, place: Any) -> None:
        """Forget a sequence."""
        ...

    def run(self, feeds: Sequence[Feed]) -> Tensor:
        """Append tokens to sequences; return the logits after each feed that asks, in their
        order, of shape [asking, vocabulary]. When it raises nothing was appended.

        Raises CacheFull when the memory budget has no room for the tokens: it may be tried again.
        Raises StateLost when a sequence cannot go on for want of memory.
        """
        ...

    def recall(self, place: Any, caller: str, ids: list[int]) -> int:
        """Begin an open sequence with what is kept of the same beginning; return its tokens."""
        ...

    def keep(self, place: Any, caller: str, ids: list[int]) -> None:
        """Keep what was computed of a sequence's tokens `ids` for `caller`'s later prompts."""
        ...

    def forget(self) -> bool:
        """Drop all that is kept of past prompts; tell whether that gave memory back."""
        ...


class StateLost(Exception):
    """The state of a sequence became larger than there is room for: it was dropped."""

    def __init__(self, reason: GatewayError) -> None:
        super().__init__(reason.message)
        self.reason = reason


class BatchRunner:
    """One forward pass for the new tokens of all sequences, be they decoding or in their prompts.

    With a `stack` that pass is the stack's, else it is the model's own. `kernel` attends where
    there is one. With a `recorder` the stack's decode steps are recorded and replayed; with
    a `gemv` those of few sequences are one call, if the stack is made for it.
    """

    is_batched = True

    def __init__(
        self,
        model: Any,
        stack: Stack | None = None,
        *,
        kernel: Kernel | None = None,
        recorder: Callable[[], Recorder] | None = None,
        gemv: Gemv | None = None,
    ) -> None:
        from gateway.engine.decoding.graphs import DecodeGraphs
        from gateway.engine.decoding.kv_cache import SlotCache
        from gateway.engine.decoding.prompt_cache import PromptCache

        self._model = model
        self._stack = stack
        self._kernel = kernel
        self._cache: SlotCache = SlotCache(is_token_major=kernel is not None)
        self._prompts: PromptCache = PromptCache(0, Unlimited())
        self._graphs: DecodeGraphs | None = None
        if stack is not None and recorder is not None:
            self._graphs = DecodeGraphs(stack, self._cache, recorder, model.device, kernel)
        self._fused = _fuse(stack, self._cache, gemv) if stack is not None and gemv else None

    @property
    def memory_bytes(self) -> int:
        return self._cache.memory_bytes + self._spare_bytes

    @property
    def _spare_bytes(self) -> int:
        """What would be given back if there were no room for the sequences."""
        graph_bytes = self._graphs.memory_bytes if self._graphs is not None else 0
        return self._prompts.memory_bytes + graph_bytes

    @property
    def own_bytes(self) -> int:
        return self._fused.memory_bytes if self._fused is not None else 0

    def first_bytes(self) -> int:
        if self._stack is not None:
            self._cache.learn(*self._stack.kept())
        if not self._cache.token_bytes:
            place = self.open()
            # Two, which no recorded step is made for.
            self.run([Feed(place, [0, 0])])
            self.release(place)
        return FIRST_CAPACITY * self._cache.token_bytes

    def attach(self, memory: Memory, prompt_cache_bytes: int) -> None:
        from gateway.engine.decoding.prompt_cache import PromptCache

        if self._graphs is not None:
            self._graphs.clear()
            self._graphs.memory = memory
        self._cache.memory = memory
        self._prompts = PromptCache(prompt_cache_bytes, memory)

    def open(self, inputs: Mapping[str, Any] | None = None) -> Slot:
        assert inputs is None, "a model that sees images is not batched"
        return self._cache.open()

    def release(self, place: Slot) -> None:
        self._cache.release(place)
        if self._graphs is not None:
            self._graphs.drop_stale()

    def run(self, feeds: Sequence[Feed]) -> Tensor:
        from gateway.engine.decoding.view import Run, View

        singles = sorted((f for f in feeds if len(f.ids) == 1), key=lambda f: f.place.row)
        chunks = sorted((f for f in feeds if len(f.ids) > 1), key=lambda f: f.place.row)
        ids: list[int] = [feed.ids[0] for feed in singles]
        last: dict[int, int] = {id(feed.place): index for index, feed in enumerate(singles)}
        runs = []
        for feed in chunks:
            place = feed.place
            runs.append(Run(place.row, place.length, len(ids), len(feed.ids)))
            ids += feed.ids
            last[id(place)] = len(ids) - 1
        decoding = [(feed.place.row, feed.place.length) for feed in singles]
        view = View(decoding, runs, self._model.device, self._kernel)
        logits = self._forward(ids, view, [last[id(feed.place)] for feed in feeds if feed.asks])
        for feed in feeds:
            feed.place.length += len(feed.ids)
        return logits

    def recall(self, place: Slot, caller: str, ids: list[int]) -> int:
        from gateway.engine.decoding.kv_cache import CacheFull

        place.expected = len(ids)
        # The last token is always computed: its logits are wanted.
        blocks = self._prompts.find(caller, ids[:-1])
        if blocks:
            try:
                self._cache.copy_in(place, blocks)
            except CacheFull:
                return 0
        return place.length

    def keep(self, place: Slot, caller: str, ids: list[int]) -> None:
        def copy_out(start: int, end: int) -> Tensor | None:
            return self._cache.copy_out(place, start, end)

        self._prompts.add(caller, ids[: place.length], copy_out)

    def forget(self) -> bool:
        had_prompts = self._prompts.clear()
        return (self._graphs is not None and self._graphs.clear()) or had_prompts

    def _begin(self, view: Any) -> None:
        """Make room: what is kept of past prompts goes before other models do."""
        from gateway.engine.decoding.kv_cache import CacheFull

        try:
            self._cache.begin(view, is_needed=not self._spare_bytes)
        except CacheFull:
            if not self.forget():
                raise
            self._cache.begin(view)

    def _forward(self, ids: list[int], view: Any, wanted: list[int]) -> Tensor:
        import torch

        device = self._model.device
        with torch.inference_mode():
            self._begin(view)
            if self._graphs is not None:
                replayed = self._graphs.logits(ids, view, wanted)
                if replayed is not None:
                    return replayed
            tokens = torch.tensor(ids, device=device)
            rows = torch.tensor(wanted, dtype=torch.long, device=device)
            if self._fused is not None:
                found = self._fused.logits(tokens, view, rows)
                if found is not None:
                    return found
            if self._stack is not None:
                return self._stack.logits(tokens, view, self._cache, rows)
            output = self._model(
                tokens[None],
                position_ids=view.all_positions()[None],
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=rows,
                view=view,
            )
            logits: Tensor = output.logits[0]
            return logits


def _fuse(stack: Stack, cache: SlotCache, gemv: Gemv) -> FusedSteps | None:
    from gateway.engine.decoding.fused import FusedSteps

    try:
        return FusedSteps(stack, cache, gemv)
    except ValueError as error:
        logger.info("steps of few sequences are left to torch: %s", error)
        return None
