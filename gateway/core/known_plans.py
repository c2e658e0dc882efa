"""The plans of names that mean a listed model, which most requests use."""

from collections.abc import Container

from gateway.core.catalogue import Catalogue
from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import UnsupportedCapability
from gateway.core.messages import GenerateRequest
from gateway.core.models import ModelInfo
from gateway.core.plan import Plan
from gateway.core.routing import require_capabilities

MAX_PLANS = 1024
"""A name may be spelled in many ways; with one more than these all are made anew."""


class KnownPlans:
    """Keeps each such plan with the catalogue it was made from: it is the same for all requests
    that its model can serve. Errors are not kept, nor is what depends on more than the name."""

    __slots__ = ("_aliases", "_catalogue", "_plans", "_rules")

    def __init__(self, *, aliases: Container[str], rules: Container[str]) -> None:
        """What is an alias or a rule by now is no model's name any more."""
        self._aliases = aliases
        self._rules = rules
        self._catalogue = Catalogue()
        self._plans: dict[str, tuple[Plan, ModelInfo]] = {}

    def find(self, request: GenerateRequest | EmbedRequest, catalogue: Catalogue) -> Plan | None:
        """Return what `plan_routes` would for the request, if that is known."""
        name = request.model
        known = self._plans.get(name)
        if known is None or catalogue is not self._catalogue:
            return None
        if name in self._rules or name in self._aliases:
            return None
        plan, info = known
        try:
            require_capabilities(request, info)
        except UnsupportedCapability:
            return None
        return plan

    def keep(self, plan: Plan, catalogue: Catalogue) -> None:
        """Keep what `plan_routes` made, if it is a plan of that kind."""
        if plan.rule != "name" or not plan.routes or plan.routes[0].info is None:
            return
        if catalogue is not self._catalogue or len(self._plans) >= MAX_PLANS:
            self._catalogue, self._plans = catalogue, {}
        self._plans[plan.asked] = plan, plan.routes[0].info
