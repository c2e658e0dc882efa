"""Cron expressions, which cronsim reads: what is ours is the clock, the zone and the errors."""

from contextlib import suppress
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import cron
from gateway.core.errors import InvalidRequest

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("expression", "zone", "after", "then"),
    [
        ("0 8 * * *", "UTC", "2026-05-01T08:00:00", "2026-05-02T08:00:00"),
        ("0 8 * * *", "UTC", "2026-05-01T07:59:59.999", "2026-05-01T08:00:00"),
        ("*/15 * * * *", "UTC", "2026-05-01T08:01:00", "2026-05-01T08:15:00"),
        ("0 8 * * MON-FRI", BERLIN, "2026-10-23T09:00:00", "2026-10-26T08:00:00"),
        ("30 2 * * *", BERLIN, "2026-03-28T12:00:00", "2026-03-29T03:00:00"),
        ("*/5 * * * * *", "UTC", "2026-05-01T08:00:01", "2026-05-01T08:00:05"),
    ],
)
def test_the_next_time_is_the_first_after(
    expression: str, zone: str, after: str, then: str
) -> None:
    assert cron.next_time(expression, zone, at(after, zone)) == at(then, zone)


@pytest.mark.parametrize(
    "expression",
    ["", "* * * *", "60 * * * *", "0 0 30 2 *", "x", "@daily", "* " * 200, "٣ * * * *"],
)
def test_what_is_no_time_is_refused(expression: str) -> None:
    with pytest.raises(InvalidRequest):
        cron.check(expression, "UTC")


@pytest.mark.parametrize("name", ["", "Nowhere/Land", "../../etc/passwd", "\0", "x" * 5000])
def test_a_zone_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        cron.check("* * * * *", name)


@given(st.text(alphabet="0123456789*/,-#LWMONJAN ", max_size=40))
def test_any_text_is_a_time_to_come_or_refused(text: str) -> None:
    now = at("2026-05-01T08:00:00")
    with suppress(InvalidRequest):
        assert cron.next_time(text, "UTC", now) > now
