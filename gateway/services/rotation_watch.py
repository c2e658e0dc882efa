"""Those who watch rotations: each is told how they stand, then what changes."""

from collections.abc import AsyncGenerator, Collection, Mapping

import msgspec

from gateway.core.errors import Overloaded, ShuttingDown
from gateway.core.rotation import Rotation
from gateway.services.rotation_board import RotationBoard


class RotationEvent(msgspec.Struct, frozen=True):
    """A rotation as it is now; None: it was removed."""

    name: str
    rotation: Rotation | None


class RotationWatch:
    """On one event loop."""

    def __init__(self, board: RotationBoard, *, max_watchers: int) -> None:
        self._board = board
        self._max_watchers = max_watchers
        self._watchers = 0
        self._is_closed = False

    def close(self) -> None:
        """End them all, and let nobody in."""
        self._is_closed = True
        self._board.tell()

    async def watch(self, names: Collection[str] = ()) -> AsyncGenerator[RotationEvent, None]:
        """Yield the rotations as they are now, those of the names or all, then each that changes.

        Who reads slowly misses what is between. Raises Overloaded, and ShuttingDown at the end.
        """
        if self._watchers >= self._max_watchers:
            raise Overloaded(f"All {self._max_watchers} subscriptions are taken.")
        self._watchers += 1
        try:
            told: dict[str, Rotation] = {}
            while not self._is_closed:
                changed = self._board.changed
                for event in _differences(told, self._board.known, names):
                    yield event
                await changed.wait()
            raise ShuttingDown("The gateway is shutting down.")
        finally:
            self._watchers -= 1


def _differences(
    told: dict[str, Rotation], known: Mapping[str, Rotation], names: Collection[str]
) -> list[RotationEvent]:
    """Return what is new, and take it as told."""
    events = [RotationEvent(name, None) for name in told if name not in known]
    for event in events:
        del told[event.name]
    for name in sorted(known):
        shown = _without_lease(known[name])
        if (not names or name in names) and told.get(name) != shown:
            told[name] = shown
            events.append(RotationEvent(name, shown))
    return events


def _without_lease(rotation: Rotation) -> Rotation:
    """Return the rotation as watchers see it: that a step goes on is no news."""
    step = rotation.step
    if step is None:
        return rotation
    return msgspec.structs.replace(rotation, step=msgspec.structs.replace(step, leased_until=None))
