"""An answer that a provider began without a task, and what became of it."""

import asyncio
from collections.abc import Callable, Sequence

from gateway.core.errors import GatewayError
from gateway.core.events import Event
from gateway.core.messages import GenerateRequest
from gateway.core.names import ModelRef
from gateway.core.ports import Eager
from gateway.core.telling import Rest, Wait

Outcome = tuple[list[Event], type[GatewayError] | None, str]
"""The events, and the kind and the words of the error that ended them."""


def outcome(events: list[Event], error: GatewayError | None) -> Outcome:
    return events, type(error) if error else None, error.message if error else ""


class Begun:
    """Hears one answer. `returns` says what telling returns, or raises."""

    def __init__(
        self, returns: Callable[[Sequence[Event]], Wait | None] = lambda events: None
    ) -> None:
        self.events: list[Event] = []
        self.tellings = 0
        self.rest: Rest | None = None
        self.is_over = asyncio.Event()
        self.cancel: Callable[[], None]
        self._returns = returns
        self._has_begun = False

    def begin(self, provider: Eager, request: GenerateRequest, ref: ModelRef) -> "Begun":
        """Begin, which must be possible."""
        cancel = provider.begin(request, ref, self._tell, self._over)
        assert cancel is not None, "nothing was begun"
        self.cancel = cancel
        self._has_begun = True
        return self

    async def end(self) -> Outcome:
        """Return what was told in the end, with what was left to be done."""
        await self.is_over.wait()
        if self.rest is None:
            return outcome(self.events, None)
        try:
            await self.rest()
        except GatewayError as error:
            return outcome(self.events, error)
        return outcome(self.events, None)

    def _tell(self, events: Sequence[Event]) -> Wait | None:
        assert self._has_begun, "told before begin returned"
        self.events += events
        self.tellings += 1
        return self._returns(events)

    def _over(self, rest: Rest | None) -> None:
        assert self._has_begun and not self.is_over.is_set(), "over is told once"
        self.rest = rest
        self.is_over.set()
