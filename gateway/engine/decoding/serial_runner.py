"""Runs sequences through a model one after the other, each with a decoder of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gateway.core.errors import GatewayError
from gateway.engine.decoding.decoder import CachedDecoder, Decoder
from gateway.engine.decoding.growth import Growth, learn_growth
from gateway.engine.decoding.runner import Feed, StateLost
from gateway.engine.memory.memory import FIRST_CAPACITY, Memory, Unlimited

if TYPE_CHECKING:
    from torch import Tensor

ROOM_TOKENS = 64
"""Tokens that a decoder has memory reserved for beyond what it holds, where there is enough."""


class _Place:
    """One sequence, what its decoder takes, and the bytes that are reserved for it."""

    def __init__(self, inputs: Mapping[str, Any] | None) -> None:
        self.inputs = inputs
        self.decoder: Decoder | None = None
        self.used_bytes = 0
        self.held_bytes = 0
        # What its last step came to, if another's failed: fed once, it cannot take it again.
        self.outcome: Tensor | Exception | None = None


class SerialRunner:
    """One forward pass for each sequence, through a decoder of its own. Works for every model.

    Memory is reserved before a step for all that it may add, and after it made what the decoders
    hold: their caches and states differ too much to be known beforehand.
    """

    is_batched = False
    own_bytes = 0

    def __init__(self, model: Any, decoder: Callable[..., Decoder] = CachedDecoder) -> None:
        self._make = decoder
        self._model = model
        self._memory: Memory = Unlimited()
        self._growth: Growth | None = None
        self.memory_bytes = 0

    def first_bytes(self) -> int:
        return self._learn().first_bytes(FIRST_CAPACITY)

    def attach(self, memory: Memory, prompt_cache_bytes: int) -> None:
        self._memory = memory

    def open(self, inputs: Mapping[str, Any] | None = None) -> _Place:
        return _Place(inputs)

    def release(self, place: _Place) -> None:
        place.decoder = place.outcome = None
        self._give_back(place, place.held_bytes)

    def run(self, feeds: Sequence[Feed]) -> Tensor:
        import torch

        fresh = [feed for feed in feeds if feed.place.outcome is None]
        self._reserve(fresh)
        for feed in fresh:
            feed.place.outcome = self._outcome(feed)
        asked = []
        for feed in feeds:
            if isinstance(feed.place.outcome, Exception):
                raise feed.place.outcome
            if feed.asks:
                asked.append(feed.place.outcome)
        for feed in feeds:
            feed.place.outcome = None
        return torch.stack(asked) if asked else torch.empty(0, 0)

    def recall(self, place: _Place, caller: str, ids: list[int]) -> int:
        return 0

    def keep(self, place: _Place, caller: str, ids: list[int]) -> None:
        pass

    def forget(self) -> bool:
        return False

    def _learn(self) -> Growth:
        if self._growth is None:
            self._growth = learn_growth(self._model, self._make)
        return self._growth

    def _reserve(self, feeds: Sequence[Feed]) -> None:
        """Take what the feeds may add, for all of them or for none: nobody has begun yet."""
        needs = [self._need(feed) for feed in feeds]
        if not any(needs):
            return
        # A little more than now, where there is enough: not every step shall have to ask.
        room = ROOM_TOKENS * self._learn().token_bytes
        if self._memory.reserve(sum(needs) + room * len(needs), is_needed=False):
            needs = [need + room for need in needs]
        elif not self._memory.reserve(sum(needs)):
            raise _cache_full(sum(needs))
        for feed, need in zip(feeds, needs, strict=True):
            self._hold(feed.place, need)

    def _need(self, feed: Feed) -> int:
        """Return what is to be reserved before a step may add what it can."""
        place: _Place = feed.place
        growth = self._learn()
        if place.decoder is None:
            added = growth.first_bytes(len(feed.ids), place.inputs)
        else:
            added = growth.step_bytes(len(feed.ids) + place.decoder.waiting)
        return max(0, place.used_bytes + added - place.held_bytes)

    def _outcome(self, feed: Feed) -> Tensor | Exception:
        place = feed.place
        try:
            if place.decoder is None:
                place.decoder = self._open_decoder(place.inputs)
                place.inputs = None
            logits: Tensor = place.decoder.feed(feed.ids, feed.asks)
            self._settle(place)
            return logits
        except Exception as error:  # whatever a model trips over is that one sequence's
            return error

    def _open_decoder(self, inputs: Mapping[str, Any] | None) -> Decoder:
        return self._make(self._model, inputs) if inputs else self._make(self._model)

    def _settle(self, place: _Place) -> None:
        """Hold at least what the decoder does, and not much more."""
        assert place.decoder is not None, "it was fed"
        place.used_bytes = place.decoder.memory_bytes
        spare = place.held_bytes - place.used_bytes
        room = ROOM_TOKENS * self._learn().token_bytes
        if spare > 2 * room:
            self._give_back(place, spare - room)
        elif spare < 0:
            if not self._memory.reserve(-spare):
                place.decoder = None
                raise StateLost(_cache_full(-spare))
            self._hold(place, -spare)

    def _hold(self, place: _Place, size_bytes: int) -> None:
        place.held_bytes += size_bytes
        self.memory_bytes += size_bytes

    def _give_back(self, place: _Place, size_bytes: int) -> None:
        self._hold(place, -size_bytes)
        self._memory.release(size_bytes)


def _cache_full(need_bytes: int) -> GatewayError:
    from gateway.engine.decoding.kv_cache import CacheFull

    return CacheFull(
        f"There is no memory for more context of this model: it takes {need_bytes} bytes more."
    )
