"""One generation as the worker sees it: it says what to feed next and takes what came out."""

from typing import TYPE_CHECKING, Any

from gateway.core.events import Event, Finished, FinishReason, Started, TextDelta, Usage, Waiting
from gateway.core.names import ModelRef
from gateway.engine.bridge import Channel
from gateway.engine.detokenizer import Detokenizer
from gateway.engine.sampler import Sampler
from gateway.engine.stopping import StopMatcher

if TYPE_CHECKING:
    from torch import Tensor

PREFILL_CHUNK = 256
"""Prompt tokens computed between two tokens of the other sequences."""


class Sequence:
    """Fed with `next_ids` it takes the logits by `accept`, until `finished`. Computes nothing.

    `place` is where the runner keeps it, once it is admitted.
    """

    def __init__(
        self,
        ref: ModelRef,
        *,
        prompt: list[int],
        sampler: Sampler,
        detokenizer: Detokenizer,
        stops: StopMatcher,
        eos_ids: frozenset[int],
        max_tokens: int,
        channel: Channel,
    ) -> None:
        self.channel = channel
        self.cancelled = False
        self.finished = False
        self.queue_ms = 0.0
        self.queue_position = 0
        self.place: Any = None
        self._ref = ref
        self._prompt_tokens = len(prompt)
        self._pending = prompt
        self._sampler = sampler
        self._detokenizer = detokenizer
        self._stops = stops
        self._eos_ids = eos_ids
        self._max_tokens = max_tokens
        self._generated = 0
        self._untold = 0

    @property
    def next_ids(self) -> list[int]:
        """What to feed next: a chunk of the prompt, or the token that was said last."""
        return self._pending[:PREFILL_CHUNK]

    @property
    def in_prompt(self) -> bool:
        return self._generated == 0

    def accept(self, logits: "Tensor") -> list[Event]:
        """Take the logits after `next_ids` and return what is to be said; sets `finished`."""
        self._pending = self._pending[PREFILL_CHUNK:]
        if self._pending:
            done = 1 - len(self._pending) / self._prompt_tokens
            return [Waiting("prefill", fraction=round(done, 3))]
        token = self._sampler.next_token(logits)
        events: list[Event] = []
        if self._generated == 0:
            events.append(Started(self._ref, self._prompt_tokens, queue_ms=self.queue_ms))
        if token in self._eos_ids:
            return events + self._finish("stop")
        self._generated += 1
        self._untold += 1
        self._pending = [token]
        events += self._tell(self._stops.push(self._detokenizer.push(token)))
        if self._stops.stopped:
            return events + self._finish("stop")
        if self._generated >= self._max_tokens:
            return events + self._finish("length")
        return events

    def _tell(self, text: str) -> list[Event]:
        if not text:
            return []
        tokens, self._untold = self._untold, 0
        return [TextDelta(text, tokens)]

    def _finish(self, reason: FinishReason) -> list[Event]:
        self.finished = True
        tail = self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        if self._stops.stopped:
            reason = "stop"
        usage = Usage(self._prompt_tokens, self._generated)
        return [*self._tell(tail), Finished(reason, usage)]
