"""One generation as the worker sees it: it says what to feed next and takes what came out."""

from typing import Any

from gateway.core.events import Event, Finished, FinishReason, Started, Usage, Waiting
from gateway.core.names import ModelRef
from gateway.engine.decoding.bridge import Channel
from gateway.engine.decoding.speech import Begun, Speech
from gateway.engine.sampling.sampler import Sampled, Sampler
from gateway.engine.text.prompt import Prompt


class Sequence:
    """Takes the tokens that are drawn for it by `accept`, until `finished`. Computes nothing.

    `tokens` are the prompt and the answer so far; the first `fed` of them are in the model, at
    `place`, where the runner keeps it once it is admitted. What had `begun` before is prompt here.
    A sequence whose place is taken away starts over with `fed` 0, and nothing that was said is
    drawn again; one that has seen its images cannot. `inputs` go to the runner with a prompt that
    has images.
    """

    def __init__(
        self,
        ref: ModelRef,
        *,
        caller: str,
        prompt: Prompt,
        begun: Begun,
        sampler: Sampler,
        speech: Speech,
        end_ids: frozenset[int],
        max_tokens: int,
        channel: Channel,
    ) -> None:
        self.caller = caller
        self.sampler = sampler
        self.channel = channel
        self.tokens = [*prompt.ids, *begun.ids]
        self.inputs = prompt.extended(len(begun.ids)).inputs
        self._has_images = prompt.inputs is not None
        self.fed = 0
        self.place: Any = None
        self.cancelled = False
        self.finished = False
        self.queued_at = 0.0
        self.admitted_at = 0.0
        self.queue_ms = 0.0
        self.queue_position = 0
        self._ref = ref
        self._prompt_tokens = len(self.tokens)
        self._speech = speech
        self._end_ids = end_ids
        self._max_tokens = max_tokens
        self._is_started = False
        self._untold = begun.untold
        for token in begun.ids:
            sampler.accept(token)

    @property
    def remaining(self) -> int:
        """How many tokens are to be fed before the next one can be drawn."""
        return len(self.tokens) - self.fed

    @property
    def said(self) -> int:
        return len(self.tokens) - self._prompt_tokens

    @property
    def can_start_over(self) -> bool:
        """Whether all that it takes is still here."""
        return self.inputs is not None or not self._has_images

    def advance(self, count: int) -> list[Event]:
        """Take note that `count` more tokens are in the model; tell how far the prompt is."""
        self.fed += count
        if not self.remaining:
            # Pixels are large: who has seen them goes on, or fails.
            self.inputs = None
        if self.remaining and not self._is_started:
            return [Waiting("prefill", fraction=round(self.fed / len(self.tokens), 3))]
        return []

    def accept(self, sampled: Sampled) -> list[Event]:
        """Take the next token and return what is to be said; sets `finished`."""
        token = sampled.token
        events: list[Event] = []
        if not self._is_started:
            self._is_started = True
            events.append(Started(self._ref, self._prompt_tokens, queue_ms=self.queue_ms))
            events += self._untold
        if token in self._end_ids:
            return events + self._finish("stop")
        self.tokens.append(token)
        events += self._speech.say(token, sampled.logprob)
        if self._speech.is_over:
            return events + self._finish("stop")
        if self.said >= self._max_tokens:
            return events + self._finish("length")
        return events

    def let_go(self) -> None:
        """Drop what belongs to the model: a reader may hold on to the sequence for long."""
        del self._speech, self.sampler
        self.place = self.inputs = None

    def _finish(self, cause: FinishReason) -> list[Event]:
        self.finished = True
        deltas, reason = self._speech.transcript.finish(cause)
        return [*deltas, Finished(reason, Usage(self._prompt_tokens, self.said))]
