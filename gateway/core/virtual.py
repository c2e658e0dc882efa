"""Names that stand for several models: rules as data. Pure."""

from collections import ChainMap
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeVar, overload

import msgspec

from gateway.core.errors import InvalidRequest
from gateway.core.models import ModelInfo
from gateway.core.names import MAX_NAME_LENGTH, ModelRef
from gateway.core.states import ModelState

Order = Literal["listed", "weighted", "warm_first"]
MAX_CANDIDATES = 64
LISTED_UNDER = "virtual"
"""What stands in listings where a model has its provider: no part of a name, and no provider's."""


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that may answer; `weight` is its share where the order is weighted."""

    model: str
    weight: float = 1.0


class VirtualModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A name and who may answer for it, best first.

    `order` tells who is asked first of those that can do what a request needs: "listed" the first,
    "weighted" one by lot, "warm_first" one that is in memory. The others follow as they are listed,
    for when the first fails before it said anything. With `continue_on_failure` an answer that
    breaks goes on with the next, `max_continuations` times (None: as often as the operator allows).
    `version` counts the writings of rules in the database; 0 is one of the configuration.
    """

    name: str
    candidates: tuple[Candidate, ...]
    order: Order = "listed"
    continue_on_failure: bool = False
    max_continuations: int | None = None
    version: int = 0


T = TypeVar("T")


class VirtualModels(ChainMap[str, VirtualModel]):
    """Those of several sources, the first of which counts. Every request looks for its name here,
    which is to cost little."""

    def __contains__(self, name: object) -> bool:
        for models in self.maps:  # noqa: SIM110 - a generator costs ten times as much
            if name in models:
                return True
        return False

    @overload
    def get(self, key: str, default: None = None) -> VirtualModel | None: ...
    @overload
    def get(self, key: str, default: VirtualModel | T) -> VirtualModel | T: ...
    def get(self, key: str, default: VirtualModel | T | None = None) -> VirtualModel | T | None:
        for models in self.maps:
            if key in models:
                return models[key]
        return default


def describe_virtual(rule: VirtualModel, candidates: Sequence[ModelInfo]) -> ModelInfo:
    """Return a virtual model as a line of a listing, from those lines of its candidates that there
    are: it can do what any of them can, and is in memory when one of them is."""
    capabilities = (each for info in candidates for each in info.capabilities)
    states = {info.state for info in candidates}
    lengths = [info.context_length for info in candidates if info.context_length is not None]
    names = ", ".join(candidate.model for candidate in rule.candidates)
    return ModelInfo(
        ModelRef(LISTED_UNDER, rule.name),
        ModelState.LOADED if ModelState.LOADED in states else ModelState.NOT_LOADED,
        context_length=max(lengths, default=None),
        capabilities=tuple(dict.fromkeys(capabilities)),
        metadata=(("candidates", names), ("order", rule.order)),
        virtual=True,
        listed_as=rule.name,
    )


def check_rules(
    rules: Mapping[str, VirtualModel], *, providers: Collection[str], aliases: Collection[str]
) -> None:
    """Raise InvalidRequest for a rule that can never work, or would lead to another rule."""
    for name, rule in rules.items():
        check_name(name, providers)
        if name in aliases:
            raise InvalidRequest(f"'{name}' already means something else.", param="name")
        check_candidates(rule, rules)


def check_name(name: str, providers: Collection[str]) -> None:
    """Raise InvalidRequest for what can be no name of a rule."""
    if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidRequest(
            "A virtual model's name has 1 to 512 printable characters.", param="name"
        )
    if name.partition("/")[0] in providers:
        raise InvalidRequest(f"'{name}' already means something else.", param="name")


def check_candidates(rule: VirtualModel, virtual: Collection[str]) -> None:
    """Raise InvalidRequest for candidates that can never work; `virtual` are the names of all
    virtual models."""
    name = rule.name
    if not 1 <= len(rule.candidates) <= MAX_CANDIDATES:
        raise InvalidRequest(f"'{name}' needs 1 to {MAX_CANDIDATES} candidates.")
    if rule.max_continuations is not None and rule.max_continuations < 0:
        raise InvalidRequest(f"'max_continuations' of '{name}' must not be negative.")
    models = [candidate.model for candidate in rule.candidates]
    if len(set(models)) < len(models):
        raise InvalidRequest(f"'{name}' names a candidate twice.")
    for candidate in rule.candidates:
        if candidate.model in virtual:
            raise InvalidRequest(
                f"'{name}' leads to '{candidate.model}', which is a virtual model itself."
            )
        if not 0 <= candidate.weight < float("inf"):
            raise InvalidRequest(f"The weight of '{candidate.model}' must not be negative.")
    if not any(candidate.weight for candidate in rule.candidates):
        raise InvalidRequest(f"All weights of '{name}' are 0.")
