"""Single flight: who wants what somebody is asking for already waits for that answer."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

from gateway.core.errors import GatewayError

T = TypeVar("T")


class _Flight(Generic[T]):
    """One question under way; `answers` holds what came, and `error` what came instead."""

    def __init__(self) -> None:
        self.landed = anyio.Event()
        self.answers: list[T] = []
        self.error: GatewayError | None = None


class SingleFlight(Generic[T]):
    """Asks once for all who want the same at the same time. On one event loop."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    async def ask(self, key: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Return the answer to `ask`, or to the one of the same key that is under way; an error is
        raised for all. Should the one who asks be cancelled, the next asks."""
        while (flight := self._flights.get(key)) is not None:
            await flight.landed.wait()
            if flight.error is not None:
                raise flight.error.renewed()
            if flight.answers:
                return flight.answers[0]
        flight = self._flights[key] = _Flight()
        try:
            flight.answers.append(await ask())
        except GatewayError as error:
            flight.error = error.renewed()
            raise
        finally:
            del self._flights[key]
            flight.landed.set()
        return flight.answers[0]
