"""Chooses which resident models make room. Pure: frees nothing itself."""

from collections.abc import Sequence

from gateway.core.errors import NoRoom
from gateway.core.models import Resident
from gateway.core.names import ModelRef


def choose_victims(
    residents: Sequence[Resident],
    *,
    need_bytes: int,
    free_bytes: int,
    need_slots: int = 0,
) -> list[ModelRef]:
    """Return the least recently used idle models whose removal makes room, oldest first.

    `need_slots` is how many models must go whatever their size. Models that are leased or pinned
    stay. Raises NoRoom when even evicting every idle model would not be enough.
    """
    idle = [model for model in residents if model.leases == 0 and not model.pinned]
    victims: list[ModelRef] = []
    for model in sorted(idle, key=lambda resident: resident.last_used):
        if free_bytes >= need_bytes and len(victims) >= need_slots:
            break
        victims.append(model.ref)
        free_bytes += model.memory_bytes
    if free_bytes < need_bytes or len(victims) < need_slots:
        raise NoRoom("Every model that could make room is in use.")
    return victims


def is_worth_waiting(
    residents: Sequence[Resident],
    *,
    need_bytes: int,
    free_bytes: int,
    need_slots: int = 0,
) -> bool:
    """Tell whether there will be room once the models in use are idle: pinned ones never go."""
    passing = [model for model in residents if not model.pinned]
    free_bytes += sum(model.memory_bytes for model in passing)
    return free_bytes >= need_bytes and len(passing) >= need_slots
