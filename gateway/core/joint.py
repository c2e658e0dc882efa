"""Stop strings over the joint between two models that make one answer. Pure."""

from collections.abc import Sequence

from gateway.core.events import TextDelta, TokenLogprob
from gateway.core.stopping import StopMatcher


class Joint:
    """Finds stop strings that begin in what one model said and end in what the next one says.

    Those that begin later are the next one's own to find. Text that may be the rest of one is held
    back, with its tokens, until it is known not to be.
    """

    def __init__(self, said: str, stops: Sequence[str]) -> None:
        self.is_over = False
        self.held_tokens = 0
        self._held_logprobs: tuple[TokenLogprob, ...] = ()
        self._held_ids: tuple[int, ...] = ()
        self._matcher = StopMatcher(stops)
        longest = max(map(len, stops), default=1)
        self._matcher.push(said[max(0, len(said) - longest + 1) :])
        # What the matcher holds of it was told: it is not told again.
        self._echo = len(self._matcher.held)
        self._pushed = 0
        self._is_passed = not self._echo

    def push(self, delta: TextDelta) -> Sequence[TextDelta]:
        """Return what may be told now; `is_over` is set once a stop string was found."""
        if self._is_passed:
            return (delta,)
        shown = self._matcher.push(delta.text)
        self._pushed += len(delta.text)
        self.is_over = self._matcher.stopped
        if len(self._matcher.held) <= self._pushed and not self.is_over:
            # Nothing that is held begins before the joint.
            self._is_passed = True
            shown += self._matcher.flush()
        return self._tell(shown, delta)

    def flush(self) -> Sequence[TextDelta]:
        """Return what was held back: no more text comes now."""
        if self._is_passed:
            return ()
        self._is_passed = True
        return self._tell(self._matcher.flush(), TextDelta("", 0))

    def _tell(self, shown: str, delta: TextDelta) -> Sequence[TextDelta]:
        told = shown[self._echo :]
        self._echo = max(0, self._echo - len(shown))
        tokens = self.held_tokens + delta.tokens
        logprobs = self._held_logprobs + delta.logprobs
        ids = self._held_ids + delta.ids
        if not told:
            self.held_tokens, self._held_logprobs, self._held_ids = tokens, logprobs, ids
            return ()
        self.held_tokens, self._held_logprobs, self._held_ids = 0, (), ()
        return (TextDelta(told, tokens, logprobs, ids),)
