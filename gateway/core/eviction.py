"""Chooses which resident models make room. Pure: frees nothing itself."""

from collections.abc import Sequence
from typing import Literal

from gateway.core.errors import NoRoom
from gateway.core.models import Resident
from gateway.core.names import ModelRef

EvictionPolicy = Literal["lru", "lrfu"]
"""Who goes first: the least recently used, or who has the least `keep_value`."""

LOAD_BYTES_A_S = 500e6
"""What a model is taken to load at that was never seen loading."""

HALF_LIFE = 64
"""After this many requests, to whichever models, a request counts for half."""


def choose_victims(
    residents: Sequence[Resident],
    *,
    need_bytes: int,
    free_bytes: int,
    need_slots: int = 0,
    policy: EvictionPolicy = "lru",
) -> list[ModelRef]:
    """Return the idle models whose removal makes room, in the order of the policy.

    `need_slots` is how many of the counted models must go whatever their size. Models that are
    leased or pinned stay, and so does one that there is room without. Raises NoRoom when even
    evicting every idle model would not be enough.
    """
    idle = [model for model in residents if model.leases == 0 and not model.pinned]
    more_bytes, more_slots = need_bytes - free_bytes, need_slots
    victims: list[Resident] = []
    for model in _ranked(idle, policy, by_size=more_bytes > 0):
        if more_bytes <= 0 and more_slots <= 0:
            break
        if more_bytes > 0 or model.slots:
            victims.append(model)
            more_bytes -= model.memory_bytes
            more_slots -= model.slots
    if more_bytes > 0 or more_slots > 0:
        raise NoRoom("Every model that could make room is in use.")
    return [model.ref for model in _needed(victims, -more_bytes, -more_slots)]


def _needed(victims: Sequence[Resident], spare_bytes: int, spare_slots: int) -> list[Resident]:
    """Return the victims without those that a later and larger one makes needless, the dearest
    of them first."""
    needed: list[Resident] = []
    for model in reversed(victims):
        if model.memory_bytes <= spare_bytes and model.slots <= spare_slots:
            spare_bytes -= model.memory_bytes
            spare_slots -= model.slots
        else:
            needed.insert(0, model)
    return needed


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
    return free_bytes >= need_bytes and sum(model.slots for model in passing) >= need_slots


def keep_value(model: Resident, *, by_size: bool = True) -> float:
    """Return what keeping a model saves: seconds of loading by and by, for each of its bytes or
    for its place.

    How often it is asked for counts as in LRFU (Lee et al., 2001), what a load costs for its size
    as in GreedyDual-Size (Cao and Irani, 1997).
    """
    size = max(1, model.memory_bytes)
    load_s = model.load_s or size / LOAD_BYTES_A_S
    return model.heat * load_s / (size if by_size else 1)


def _ranked(models: Sequence[Resident], policy: EvictionPolicy, *, by_size: bool) -> list[Resident]:
    if policy == "lru":
        return sorted(models, key=lambda model: model.last_used)
    return sorted(models, key=lambda model: (keep_value(model, by_size=by_size), model.last_used))


class Demand:
    """How often each model is asked for, the older the less: also of those not in memory.

    Time is counted in requests, so that a quiet night makes nobody forget the day.
    """

    def __init__(self, half_life: float = HALF_LIFE) -> None:
        self._decay: float = 0.5 ** (1 / half_life)
        self._forget_after = round(20 * half_life)  # when a request counts for a millionth
        self._requests = 0
        self._asked: dict[ModelRef, tuple[float, int]] = {}

    def note(self, ref: ModelRef) -> None:
        """Take note of one request."""
        self._requests += 1
        self._asked[ref] = self.heat(ref) + 1, self._requests
        if self._requests % self._forget_after == 0:
            oldest = self._requests - self._forget_after
            self._asked = {key: kept for key, kept in self._asked.items() if kept[1] > oldest}

    def heat(self, ref: ModelRef) -> float:
        """Return the sum of a model's requests, each by its age."""
        heat, at = self._asked.get(ref, (0.0, self._requests))
        return heat * self._decay ** (self._requests - at)
