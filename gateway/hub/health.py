"""Which files are known to be bad: remembered until they change. Looks into headers itself."""

from msgspec.structs import replace

from gateway.core.library import ShelvedModel
from gateway.hub.verify import find_fault

MAX_KNOWN = 16_384
"""Models that are remembered; with more, all are looked at anew."""


class Health:
    """What was found out about files, by their paths and stamps. Used from many threads."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str | None]] = {}

    def recall(self, shelved: ShelvedModel) -> ShelvedModel:
        """Return the model with the fault that is known of it, looking at no file."""
        stamp, reason = self._known.get(shelved.model.path, ("", None))
        if reason is None or stamp != shelved.stamp or shelved.model.problem:
            return shelved
        return replace(shelved, model=replace(shelved.model, problem=reason))

    def examine(self, shelved: ShelvedModel) -> ShelvedModel:
        """Return the model with the fault that the headers of its files have, if any. Reads them
        once for as long as the files stay as they are."""
        stamp, _ = self._known.get(shelved.model.path, ("", None))
        if stamp != shelved.stamp:
            self.judge(shelved, find_fault(shelved))
        return self.recall(shelved)

    def judge(self, shelved: ShelvedModel, reason: str | None) -> None:
        """Remember why the files, as they are, must not be loaded; None: nothing speaks against
        it."""
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[shelved.model.path] = shelved.stamp, reason
