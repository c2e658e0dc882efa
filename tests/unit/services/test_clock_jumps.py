"""The time of day jumps by an hour, either way: nothing that waits or expires goes by it."""

import inspect
import time
from collections.abc import Callable

import anyio
import pytest

from gateway.core.events import Finished, Started, TextDelta, Usage
from gateway.core.states import StreamEnd
from gateway.services.gatekeeper import Gatekeeper
from gateway.services.lease import BootLease
from gateway.services.recorder import SessionRecorder
from gateway.services.retention import SessionPurger
from gateway.services.stream_tokens import StreamTokens
from gateway.services.streams import StreamService
from tests.scripted_provider import ECHO
from tests.unit.services.test_streams import REQUEST, OpenHouse, open_house

__all__ = ["open_house"]

HOUR_S = 3600.0


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the time of day on or back, for all who ask for it from now on."""
    real = time.time

    def jump(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return jump


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S])
def test_a_token_holds_for_its_time(jump: Callable[[float], None], by_s: float) -> None:
    """F44"""
    tokens = StreamTokens(b"secret", lifetime_s=60)
    token = tokens.issue("s")
    jump(by_s)
    assert tokens.admits("s", token)


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S])
async def test_a_stream_in_a_jump_is_timed_and_kept_as_ever(
    open_house: OpenHouse, by_s: float
) -> None:
    """F44"""
    gate = anyio.Event()
    script = [Started(ECHO), TextDelta("a"), gate, TextDelta("b"), Finished("stop", Usage(1, 2))]
    async with open_house(script, keep_s=60.0) as house:
        day = [1_790_000_000.0]
        house.streams._now = lambda: day[0]
        async with house.streams.open(REQUEST, is_resumable=True) as reader:
            await reader.read()
            day[0] += by_s
            await house.clock.turn(2.0)
            gate.set()
            while await reader.read():
                pass
        session = await house.session()
        kept = house.streams.find(session.opened.id, caller="")
        assert kept.is_ended
    assert session.closed is not None
    assert session.closed.end is StreamEnd.STOP
    assert session.closed.timings.total_ms == 2000.0


@pytest.mark.parametrize(
    "kind, name",
    [
        (StreamService, "clock"),
        (SessionRecorder, "clock"),
        (SessionPurger, "clock"),
        (Gatekeeper, "clock"),
        (StreamTokens, "clock"),
    ],
)
def test_what_measures_spans_goes_by_the_monotonic_clock(kind: type, name: str) -> None:
    """F44"""
    assert inspect.signature(kind.__init__).parameters[name].default is time.monotonic


def test_leases_are_given_no_clock_at_all() -> None:
    """F44: the database's clock is the only one that all gateways share."""
    assert set(inspect.signature(BootLease.__init__).parameters) == {
        *("self", "store", "node", "boot", "lease_s", "sleep"),
    }
