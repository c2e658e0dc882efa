"""The real services of decisions and rules for a gateway of the tests, with stores in memory."""

from collections.abc import Container
from typing import NamedTuple

from gateway.core.ports import SessionStore
from gateway.core.rotation import RESERVED
from gateway.services.catalog import Catalog
from gateway.services.decision_log import DecisionLog
from gateway.services.decisions import DecisionService
from gateway.services.router import ModelRouterService
from gateway.services.rules import RuleService
from gateway.settings import Settings
from gateway.testing import MemoryDecisionStore, MemoryRuleStore


class Routing(NamedTuple):
    rules: RuleService
    log: DecisionLog
    store: MemoryRuleStore

    def decisions(
        self, sessions: SessionStore, router: ModelRouterService, node: str
    ) -> DecisionService:
        return DecisionService(self.log, MemoryDecisionStore(sessions), router, node=node)


def build_routing(
    settings: Settings,
    catalog: Catalog,
    providers: tuple[str, ...],
    rotations: Container[str] = (),
) -> Routing:
    store = MemoryRuleStore()
    rules = RuleService(
        store,
        catalog,
        aliases=settings.aliases,
        virtual=settings.virtual_models,
        providers=(*providers, RESERVED),
        rotations=rotations,
    )
    return Routing(rules, DecisionLog(), store)
