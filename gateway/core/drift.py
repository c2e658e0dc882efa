"""Where the record of models' states and the truth differ. Pure."""

from collections.abc import Mapping, Sequence

import msgspec

from gateway.core.models import ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.states import ModelState


class StateDrift(msgspec.Struct, frozen=True):
    """A model whose record said one thing while another was so."""

    ref: ModelRef
    recorded: ModelState
    found: ModelState

    def __str__(self) -> str:
        return f"{self.ref} was recorded as {self.recorded} and is {self.found}"


def find_drift(
    recorded: Mapping[ModelRef, ModelState], truth: Sequence[ModelStateChange]
) -> list[StateDrift]:
    """Return what differs. A model that only one side knows is NOT_LOADED on the other: files that
    come and go are no drift."""
    found = {change.ref: change.state for change in truth}
    nothing = ModelState.NOT_LOADED
    return [
        StateDrift(ref, was, now)
        for ref in recorded.keys() | found.keys()
        if (was := recorded.get(ref, nothing)) is not (now := found.get(ref, nothing))
    ]
