"""What becomes of one request on its way through its plan, noted as it happens. Plain data."""

from collections.abc import Callable

import msgspec

from gateway.core.errors import GatewayError
from gateway.core.ledger import Movement
from gateway.core.plan import Plan


class Attempt(msgspec.Struct):
    """One asking of the candidate at `place` in the plan. Times are of the trail's clock; with
    no failure it answered, or is being asked."""

    place: int
    began_at: float
    failed_at: float | None = None
    code: str | None = None
    message: str | None = None


class Move(msgspec.Struct, frozen=True):
    """What the request did to the models in memory, at a time of the trail's clock."""

    at: float
    what: Movement


class Trail:
    """Who was planned, who was asked, and what that moved in memory. For the event loop only;
    cheap, since every request has one: what it means is worked out when somebody reads it."""

    __slots__ = ("_clock", "attempts", "began_at", "moves", "plan")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.began_at = clock()
        self.plan: Plan | None = None
        self.attempts: list[Attempt] = []
        self.moves: tuple[Move, ...] = ()

    def ask(self, place: int) -> None:
        """The candidate at that place of the plan is asked, once more or for the first time."""
        self.attempts.append(Attempt(place, self._clock()))

    def fail(self, error: GatewayError) -> None:
        """Whoever was asked last failed."""
        attempt = self.attempts[-1]
        attempt.failed_at = self._clock()
        attempt.code, attempt.message = error.code, error.message

    def move(self, what: Movement) -> None:
        """The request has a model loaded, or one leave memory to make room."""
        self.moves = (*self.moves, Move(self._clock(), what))
