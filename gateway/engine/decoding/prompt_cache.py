"""What was computed of past prompts, so that a beginning that comes again is not computed again.

Kept in blocks of equal length that form a tree: a block stands for its tokens after those of its
parent, so prompts with a common beginning share its blocks. Each caller has a tree of its own, for
the time to the first token would tell one caller what another has asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from gateway.engine.memory.memory import Memory

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_TOKENS = 32

CopyOut = Callable[[int, int], "Tensor | None"]
"""Copies what was computed of the tokens from one index to another; see SlotCache.copy_out."""

_Key = tuple[int | str, tuple[int, ...]]


class _Block:
    def __init__(self, number: int, data: Tensor) -> None:
        self.number = number
        self.data = data


class PromptCache:
    """Holds up to `limit_bytes`; the least recently used blocks go first. Used by one thread."""

    def __init__(self, limit_bytes: int, memory: Memory) -> None:
        self._limit_bytes = limit_bytes
        self._memory = memory
        # In order of use. A block is used after its children, so the oldest one has none.
        self._blocks: OrderedDict[_Key, _Block] = OrderedDict()
        self._numbers = 0
        self.memory_bytes = 0

    def find(self, caller: str, ids: Sequence[int]) -> list[Tensor]:
        """Return the blocks of the longest kept beginning of `ids`, first to last."""
        path = list(self._path(caller, ids))
        self._touch([key for key, _ in path])
        return [block.data for _, block in path]

    def add(self, caller: str, ids: Sequence[int], copy_out: CopyOut) -> None:
        """Keep the whole blocks of `ids` that are not there yet, as far as there is room."""
        path = [key for key, _ in self._path(caller, ids)]
        parent: int | str = self._blocks[path[-1]].number if path else caller
        for start in range(len(path) * BLOCK_TOKENS, len(ids), BLOCK_TOKENS):
            tokens = tuple(ids[start : start + BLOCK_TOKENS])
            if len(tokens) < BLOCK_TOKENS:
                break
            # The beginning is in use: it must not go to make room for its own end.
            self._touch(path)
            data = copy_out(start, start + BLOCK_TOKENS) if self._limit_bytes else None
            if data is None or not self._make_room(data.nbytes, keep=len(path)):
                break
            self._numbers += 1
            key: _Key = (parent, tokens)
            self._blocks[key] = _Block(self._numbers, data)
            self.memory_bytes += data.nbytes
            path.append(key)
            parent = self._numbers
        self._touch(path)

    def clear(self) -> bool:
        """Drop everything; tell whether there was something."""
        had_any = bool(self._blocks)
        while self._blocks:
            self._drop_oldest()
        return had_any

    def _path(self, caller: str, ids: Sequence[int]) -> Iterator[tuple[_Key, _Block]]:
        parent: int | str = caller
        for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = (parent, tuple(ids[start : start + BLOCK_TOKENS]))
            block = self._blocks.get(key)
            if block is None:
                return
            yield key, block
            parent = block.number

    def _touch(self, path: Sequence[_Key]) -> None:
        for key in reversed(path):
            self._blocks.move_to_end(key)

    def _make_room(self, need_bytes: int, *, keep: int) -> bool:
        """Drop the oldest blocks, but not the `keep` ones that were touched last."""
        while not self._take(need_bytes):
            if len(self._blocks) <= keep:
                return False
            self._drop_oldest()
        return True

    def _take(self, size_bytes: int) -> bool:
        """Reserve what fits into the limit. Nobody else makes room for it: it is only useful."""
        fits = self.memory_bytes + size_bytes <= self._limit_bytes
        return fits and self._memory.reserve(size_bytes, is_needed=False)

    def _drop_oldest(self) -> None:
        _, block = self._blocks.popitem(last=False)
        self.memory_bytes -= block.data.nbytes
        self._memory.release(block.data.nbytes)
