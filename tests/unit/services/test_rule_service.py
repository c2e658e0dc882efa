"""RuleService over a store in memory: two gateways, versions, and a database that goes away."""

import pytest

from gateway.core.errors import (
    DatabaseUnavailable,
    InvalidRequest,
    RouteChanged,
    RouteNotFound,
    RouteReadOnly,
)
from gateway.core.rules import RuleDraft
from gateway.core.virtual import Candidate, VirtualModel
from gateway.services.catalog import Catalog
from gateway.services.rules import RuleService
from gateway.testing import MemoryRuleStore
from tests.scripted_provider import ScriptedProvider

ALIAS = RuleDraft("short", "scripted/echo")


class FlakyStore(MemoryRuleStore):
    is_away = False

    async def stamp(self) -> int:
        if self.is_away:
            raise DatabaseUnavailable("away")
        return await super().stamp()


def gateway(store: MemoryRuleStore) -> RuleService:
    providers = {"scripted": ScriptedProvider()}
    return RuleService(
        store,
        Catalog(providers, timeout_s=1, ttl_s=60),
        aliases={"fixed": "scripted/echo"},
        virtual={"any": VirtualModel("any", (Candidate("scripted/echo"),))},
        providers=tuple(providers),
        rotations={"rotation/r"},
        now=lambda: 12.5,
    )


def virtual(name: str, *models: str) -> RuleDraft:
    return RuleDraft(name, None, tuple(map(Candidate, models)))


async def test_a_rule_holds_here_at_once_and_elsewhere_after_a_look() -> None:
    store = FlakyStore()
    here, there = gateway(store), gateway(store)
    aliases = there.aliases
    rule = await here.set(ALIAS, by="k1")
    assert (rule.source, rule.updated_at, rule.updated_by) == ("database", 12.5, "k1")
    assert here.aliases["short"] == "scripted/echo"
    assert "short" not in there.aliases
    await there.look()
    # The mapping that everybody holds is the same one.
    assert aliases is there.aliases
    assert aliases == {"fixed": "scripted/echo", "short": "scripted/echo"}
    await there.remove("short")
    await here.look()
    assert here.aliases == {"fixed": "scripted/echo"}


async def test_who_is_late_learns_that_somebody_else_was_first() -> None:
    store = FlakyStore()
    here, there = gateway(store), gateway(store)
    first = await here.set(ALIAS, expected=0)
    with pytest.raises(RouteChanged):
        await there.set(virtual("short", "scripted/echo"), expected=0)
    second = await there.set(virtual("short", "scripted/echo"), expected=first.version)
    assert second.version > first.version
    with pytest.raises(RouteChanged):
        await here.set(ALIAS, expected=first.version)
    with pytest.raises(RouteChanged):
        await here.remove("short", expected=first.version)
    await here.remove("short", expected=second.version)
    # A rule of that name that comes later is another one.
    third = await here.set(ALIAS)
    assert third.version not in (first.version, second.version)
    with pytest.raises(RouteChanged):
        await here.remove("short", expected=second.version)


async def test_rules_are_checked_against_those_of_the_database_and_not_against_memory() -> None:
    store = FlakyStore()
    here, there = gateway(store), gateway(store)
    await here.set(virtual("x", "y"))
    with pytest.raises(InvalidRequest, match="'x' leads to 'y'"):
        await there.set(virtual("y", "scripted/echo"))
    assert await store.stamp() == 1


async def test_rules_of_the_configuration_are_changed_there_alone() -> None:
    service = gateway(FlakyStore())
    for name in ("any", "fixed"):
        with pytest.raises(RouteReadOnly):
            await service.set(RuleDraft(name, "scripted/echo"))
        with pytest.raises(RouteReadOnly):
            await service.remove(name)
    with pytest.raises(RouteNotFound):
        await service.remove("nobody")


async def test_while_the_database_is_away_what_is_known_holds_on() -> None:
    store = FlakyStore()
    service = gateway(store)
    await service.set(ALIAS)
    store.is_away = True
    await service.look()
    assert not service.healthy
    assert "short" in service.aliases
    store.is_away = False
    await service.look()
    assert service.healthy


async def test_names_that_nobody_has_are_warned_of() -> None:
    service = gateway(FlakyStore())
    names = "scripted/echo", "fixed", "scripted/gone", "nobody", "rotation/r", "rotation/gone"
    warnings = await service.warnings(virtual("x", *names))
    assert len(warnings) == 3
    assert "There is no rotation 'gone' now." in warnings
    assert "'scripted/gone' is in no listing now." in warnings
    assert any("There is no model 'nobody'" in warning for warning in warnings)
