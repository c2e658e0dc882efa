"""Runs sequences through llama.cpp: all of them in one context, one batch a step."""

from __future__ import annotations

import ctypes
from itertools import islice
from typing import TYPE_CHECKING, Any

from gateway.engine.llama_cpp.model import BATCH_TOKENS, LlamaContext

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from gateway.engine.decoding.runner import Feed
    from gateway.engine.memory.memory import Memory

Entry = tuple[int, int, int, bool]
"""A token, its position, its sequence, and whether its logits are wanted."""


class Place:
    """A sequence's number in the context, and how many tokens of it are there."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.length = 0
        self.is_lost = False


class LlamaRunner:
    """An engine.runner.Runner: prompts and single tokens go through the model side by side."""

    is_batched = True
    memory_bytes = own_bytes = 0
    """All that sequences may take was set aside at the load, and is counted there."""

    def __init__(self, context: LlamaContext, sequences: int) -> None:
        self._context = context
        self._api = context.api
        self._free = list(range(sequences))

    def first_bytes(self) -> int:
        return 0

    def attach(self, memory: Memory, prompt_cache_bytes: int) -> None:
        pass

    def open(self, inputs: Mapping[str, Any] | None = None) -> Place:
        assert inputs is None, "no image comes this far: a GGUF model's encoder takes none"
        return Place(self._free.pop())

    def release(self, place: Place) -> None:
        self._api.llama_memory_seq_rm(self._context.memory, place.number, -1, -1)
        self._free.append(place.number)

    def run(self, feeds: Sequence[Feed]) -> Tensor:
        import torch

        if any(feed.place.is_lost for feed in feeds):
            raise RuntimeError("a failed step took the state of this sequence with it")
        entries = _entries(feeds)
        logits: list[Tensor] = []
        try:
            while batch := list(islice(entries, BATCH_TOKENS)):
                decode(self._context, batch)
                logits.append(self._logits(sum(wanted for *_, wanted in batch)))
        except RuntimeError:
            for feed in feeds:
                self._take_back(feed.place)
            raise
        for feed in feeds:
            feed.place.length += len(feed.ids)
        return torch.cat(logits)

    def recall(self, place: Place, caller: str, ids: list[int]) -> int:
        return 0

    def keep(self, place: Place, caller: str, ids: list[int]) -> None:
        pass

    def forget(self) -> bool:
        return False

    def _take_back(self, place: Place) -> None:
        """Remove what a failed step left; states that cannot go back are lost as a whole."""
        place.is_lost = not self._api.llama_memory_seq_rm(
            self._context.memory, place.number, place.length, -1
        )

    def _logits(self, rows: int) -> Tensor:
        """Copy the rows out, in the order of the batch: the next step overwrites them."""
        import torch

        found = torch.empty(rows, self._context.model.vocabulary_size)
        if rows:
            source = self._api.llama_get_logits(self._context.pointer)
            ctypes.memmove(found.data_ptr(), source, found.numel() * found.element_size())
        return found


def decode(context: LlamaContext, entries: list[Entry]) -> None:
    """Compute up to BATCH_TOKENS tokens. Raises RuntimeError; then some may have been appended."""
    code = context.api.llama_decode(context.pointer, _batch(context.api, entries))
    if code != 0:
        raise RuntimeError(f"llama_decode failed with {code}")


def _batch(api: Any, entries: list[Entry]) -> Any:
    """Return the batch as llama.cpp wants it; its arrays live as long as it does."""
    count = len(entries)
    tokens, positions, numbers, wanted = zip(*entries, strict=True)
    int32 = ctypes.c_int32
    pointers = {number: ctypes.pointer(int32(number)) for number in set(numbers)}
    return api.llama_batch(
        n_tokens=count,
        token=(int32 * count)(*tokens),
        pos=(int32 * count)(*positions),
        n_seq_id=(int32 * count)(*([1] * count)),
        seq_id=(ctypes.POINTER(int32) * count)(*(pointers[number] for number in numbers)),
        logits=(ctypes.c_int8 * count)(*wanted),
    )


def _entries(feeds: Sequence[Feed]) -> Iterator[Entry]:
    for place, ids, asks in feeds:
        last = len(ids) - 1
        for index, token in enumerate(ids):
            yield token, place.length + index, place.number, asks and index == last
