"""The config of one model, from decisions of which some may yet be taken back. Pure."""

from gateway.core.loading import ConfigChange, ModelConfig


class Decision:
    """One change of a config; it is final once it cannot be taken back any more."""

    def __init__(self, change: ConfigChange, *, is_final: bool) -> None:
        self.change = change
        self.is_final = is_final


class Decisions:
    """The config of a model, from what was decided one after the other.

    What a load asks for holds at once and is taken back if the load fails; what others decided
    meanwhile stays.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._base = config
        self._later: list[Decision] = []

    @property
    def config(self) -> ModelConfig:
        config = self._base
        for decision in self._later:
            config = decision.change.of(config)
        return config

    def add(self, change: ConfigChange, *, is_final: bool) -> Decision:
        decision = Decision(change, is_final=is_final)
        self._later.append(decision)
        self._compact()
        return decision

    def confirm(self, decision: Decision) -> None:
        decision.is_final = True
        self._compact()

    def take_back(self, decision: Decision) -> None:
        self._later.remove(decision)
        self._compact()

    def _compact(self) -> None:
        while self._later and self._later[0].is_final:
            self._base = self._later.pop(0).change.of(self._base)
