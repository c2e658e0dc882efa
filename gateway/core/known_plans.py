"""The plans of names as the catalogue spells them, which most requests use."""

from collections.abc import Container

from gateway.core.catalogue import Catalogue
from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import UnsupportedCapability
from gateway.core.messages import GenerateRequest
from gateway.core.models import ModelInfo
from gateway.core.plan import Plan, plan_named
from gateway.core.routing import Route, require_capabilities


class KnownPlans:
    """Makes each such plan once for a catalogue: it is the same for all requests that its model
    can serve. There are at most as many as there are models."""

    __slots__ = ("_aliases", "_catalogue", "_plans", "_rules")

    def __init__(self, *, aliases: Container[str], rules: Container[str]) -> None:
        """Names that are `aliases` or `rules` at that moment are not planned here."""
        self._aliases = aliases
        self._rules = rules
        self._catalogue = Catalogue()
        self._plans: dict[str, tuple[Plan, ModelInfo]] = {}

    def find(self, request: GenerateRequest | EmbedRequest, catalogue: Catalogue) -> Plan | None:
        """Return what `plan_routes` would; None where that is more than to look a name up, or
        where it would find an error."""
        name = request.model
        if name in self._rules or name in self._aliases:
            return None
        if catalogue is not self._catalogue:
            self._catalogue, self._plans = catalogue, {}
        known = self._plans.get(name) or self._make(name)
        if known is None:
            return None
        plan, info = known
        try:
            require_capabilities(request, info)
        except UnsupportedCapability:
            return None
        return plan

    def _make(self, name: str) -> tuple[Plan, ModelInfo] | None:
        listed = self._catalogue.spelled(name)
        if listed is None:
            return None
        known = plan_named(name, "name", Route(listed.ref, listed)), listed
        self._plans[name] = known
        return known
