"""One generation as the worker sees it: fed token by token until it finishes."""

from gateway.core.events import Event, Finished, FinishReason, Started, TextDelta, Usage, Waiting
from gateway.core.names import ModelRef
from gateway.engine.bridge import Channel
from gateway.engine.decoder import Decoder
from gateway.engine.detokenizer import Detokenizer
from gateway.engine.sampler import Sampler
from gateway.engine.stopping import StopMatcher

PREFILL_CHUNK = 256
"""Prompt tokens computed between two looks at the other sequences."""


class Sequence:
    """Its `advance` computes one token (or one chunk of the prompt) and says what came of it."""

    def __init__(
        self,
        ref: ModelRef,
        *,
        prompt: list[int],
        decoder: Decoder,
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
        self._ref = ref
        self._prompt_tokens = len(prompt)
        self._pending = prompt
        self._decoder = decoder
        self._sampler = sampler
        self._detokenizer = detokenizer
        self._stops = stops
        self._eos_ids = eos_ids
        self._max_tokens = max_tokens
        self._generated = 0
        self._untold = 0

    def advance(self) -> list[Event]:
        """Compute one step and return its events; `finished` is set with the last."""
        chunk, self._pending = self._pending[:PREFILL_CHUNK], self._pending[PREFILL_CHUNK:]
        logits = self._decoder.feed(chunk)
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
