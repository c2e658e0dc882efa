"""Log probabilities as callers read them: tokens by their text and bytes, not by their ids."""

from collections.abc import Callable, Sequence

from gateway.core.events import TokenLogprob
from gateway.engine.sampling.sampler import Logprob
from gateway.engine.text.vocabulary import Vocabulary

LEAST = -9999.0
"""What stands for a probability of zero, whose logarithm JSON cannot write; as OpenAI does."""


class LogprobReporter:
    """Describes what the sampler tells of chosen tokens."""

    def __init__(self, vocabulary: Vocabulary, decode: Callable[[Sequence[int]], str]) -> None:
        vocabulary.bytes_of(0)  # built here, in the caller's thread, not between two steps
        self._vocabulary = vocabulary
        self._decode = decode

    def describe(self, token: int, logprob: Logprob) -> TokenLogprob:
        """Return the chosen token with the likeliest ones of its step."""
        top = tuple(self._describe(other, value) for other, value in logprob.top)
        return self._describe(token, logprob.logprob, top)

    def _describe(
        self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()
    ) -> TokenLogprob:
        raw = self._vocabulary.bytes_of(token)
        return TokenLogprob(self._decode([token]), raw, max(logprob, LEAST), top)
