"""Times of a cron expression. Pure: the present is handed in."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from gateway.core.errors import InvalidRequest

MAX_LENGTH = 120
_SOME_TIME = datetime(2026, 1, 1, tzinfo=UTC)


def next_time(expression: str, timezone: str, after: float) -> float:
    """Return the first time after `after` that the expression means; Unix seconds.

    Five fields as Debian's cron reads them, changes to and from summer time included, or six with
    seconds first. Raises InvalidRequest for what is no expression, or never comes to pass.
    """
    zone = read_zone(timezone)
    try:
        times = CronSim(_require_plain(expression), datetime.fromtimestamp(after, zone))
        return next(times).timestamp()
    except (CronSimError, StopIteration, OverflowError) as error:
        raise InvalidRequest(
            f"'{expression[:MAX_LENGTH]}' is no time: {error or 'it never comes'}.",
            hint="Five fields: minute, hour, day of the month, month, day of the week.",
            param="cron",
        ) from None


def check(expression: str, timezone: str) -> None:
    """Raise InvalidRequest for an expression or a time zone that cannot be read."""
    next_time(expression, timezone, _SOME_TIME.timestamp())


def read_zone(name: str) -> ZoneInfo:
    """Return the time zone of that name; raises InvalidRequest where none is known."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise InvalidRequest(
            f"There is no time zone '{name[:64]}' here.",
            hint="Names are such as UTC and Europe/Berlin.",
            param="timezone",
        ) from None


def _require_plain(expression: str) -> str:
    if not 0 < len(expression) <= MAX_LENGTH or not expression.isascii():
        raise CronSimError(f"it has 1 to {MAX_LENGTH} characters of ASCII")
    return expression
