"""RuleService: the aliases and virtual models that hold, of the configuration and the database.

A rule that is changed anywhere holds everywhere within a second (`stamped`).
"""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Container, Mapping, Sequence
from contextlib import suppress

import anyio
import msgspec

from gateway.core.catalogue import Catalogue
from gateway.core.errors import (
    GatewayError,
    InvalidRequest,
    RouteNotFound,
    RouteReadOnly,
)
from gateway.core.models import ModelInfo
from gateway.core.ports import RuleStore
from gateway.core.rotation import PREFIX
from gateway.core.routing import Route, resolve_route
from gateway.core.rules import (
    MAX_RULES,
    Rule,
    RuleDraft,
    RuleSet,
    StoredRule,
    assemble_rules,
    check_draft,
    drafts_of,
    require_agreeing,
)
from gateway.core.virtual import VirtualModel, describe_virtual
from gateway.services.catalog import Catalog, Listing
from gateway.services.stamped import Stamped

logger = logging.getLogger(__name__)


class RuleService(Stamped[StoredRule]):
    """`aliases` and `virtual` stay the same mappings; what is in them is what holds now."""

    def __init__(
        self,
        store: RuleStore,
        catalog: Catalog,
        *,
        aliases: Mapping[str, str],
        virtual: Mapping[str, VirtualModel],
        providers: Collection[str],
        rotations: Container[str] = (),
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`aliases` and `virtual` are those of the configuration, `rotations` the full names of
        the rotations there are now."""
        super().__init__(store, "rules", sleep=sleep)
        self._store = store
        self._catalog = catalog
        self._config = drafts_of(aliases, virtual)
        self._providers = providers
        self._rotations = rotations
        self._now = now
        self._rules = self._assemble(())
        self.aliases: dict[str, str] = dict(self._rules.aliases)
        self.virtual: dict[str, VirtualModel] = dict(self._rules.virtual)

    def all(self) -> list[Rule]:
        """Return every rule, by name."""
        return list(self._rules.rules.values())

    def find(self, name: str) -> Rule:
        """Return a rule; raises RouteNotFound."""
        rule = self._rules.rules.get(name)
        if rule is None:
            raise RouteNotFound(f"There is no route '{name}'.", param="name")
        return rule

    async def set(self, draft: RuleDraft, *, expected: int | None = None, by: str = "") -> Rule:
        """Return the rule as it holds from now on, new or in the place of the one of that name.

        `expected` is the version that it replaces, 0 that there is none yet; None: whatever there
        is. Raises InvalidRequest for one that cannot hold, or with which another could not any
        more, RouteReadOnly for a name of the configuration, RouteChanged when there is another
        version than expected, DatabaseUnavailable.
        """
        check_draft(draft)
        self._require_own(draft.name)
        at, check = round(self._now(), 6), self.checking([draft])
        await self._store.put(draft, check, expected=expected, at=at, by=by)
        await self.load()
        return self.find(draft.name)

    def checking(self, drafts: Sequence[RuleDraft]) -> Callable[[Sequence[StoredRule]], None]:
        """Return what is given the rules of the database, and raises InvalidRequest unless all of
        these hold in their place or beside them, and the others still do."""

        def check(stored: Sequence[StoredRule]) -> None:
            names = {draft.name for draft in drafts}
            others = [each for each in stored if each.draft.name not in names]
            if len(others) + len(drafts) > MAX_RULES:
                raise InvalidRequest(f"There may be {MAX_RULES} rules.")
            after = self._assemble([*others, *(StoredRule(draft, 0, 0.0) for draft in drafts)])
            require_agreeing(self._assemble(stored), after, names)

        return check

    async def export(self) -> list[RuleDraft]:
        """Return all rules of the database, by name. Raises DatabaseUnavailable."""
        return [each.draft for each in await self._store.all()]

    async def require_possible(self, drafts: Sequence[RuleDraft]) -> None:
        """Raise what `set` would for all of these together."""
        for draft in drafts:
            self._require_own(draft.name)
        self.checking(drafts)(await self._store.all())

    async def remove(self, name: str, *, expected: int | None = None) -> Rule:
        """Return the rule that was removed; raises RouteNotFound, RouteReadOnly, RouteChanged when
        it has another version than expected, DatabaseUnavailable."""
        self._require_own(name)
        await self.load()
        removed = self.find(name)
        if not await self._store.remove(name, expected=expected):
            raise RouteNotFound(f"There is no route '{name}'.", param="name")
        await self.load()
        return removed

    def joined(self, listing: Listing) -> Listing:
        """Return the listing with the virtual models in it, to be shown."""
        described = (
            describe_virtual(rule, self._find_candidates(rule, listing.catalogue))
            for rule in self.virtual.values()
        )
        return msgspec.structs.replace(listing, models=(*listing.models, *described))

    def _find_candidates(self, rule: VirtualModel, catalogue: Catalogue) -> list[ModelInfo]:
        found = []
        for candidate in rule.candidates:
            with suppress(GatewayError):
                found.append(self._resolve(candidate.model, catalogue).info)
        return [info for info in found if info is not None]

    def _resolve(self, name: str, catalogue: Catalogue) -> Route:
        return resolve_route(
            name, providers=self._providers, catalogue=catalogue, aliases=self.aliases
        )

    async def warnings(self, draft: RuleDraft) -> list[str]:
        """Return what may be wrong with a rule and does not keep it from holding: names that
        nobody is known to have now."""
        catalogue = (await self._catalog.known()).catalogue
        found = []
        for target in draft.targets:
            if target.startswith(PREFIX):
                if target not in self._rotations:
                    found.append(f"There is no rotation '{target.removeprefix(PREFIX)}' now.")
                continue
            try:
                route = self._resolve(target, catalogue)
            except GatewayError as error:
                found.append(f"{error.message} {error.hint}" if error.hint else error.message)
            else:
                if route.info is None:
                    found.append(f"'{target}' is in no listing now.")
        return found

    def _require_own(self, name: str) -> None:
        known = self._rules.rules.get(name)
        if known is not None and known.source == "config":
            raise RouteReadOnly(f"'{name}' is a route of the configuration.", param="name")

    def _take(self, stored: Sequence[StoredRule]) -> None:
        """Have these rules hold, all at once: nothing waits between here and the end."""
        self._rules = self._assemble(stored)
        for rule in self._rules.rules.values():
            if rule.problem is not None:
                logger.warning("the rule '%s' does not hold: %s", rule.name, rule.problem)
        self.aliases.clear()
        self.aliases.update(self._rules.aliases)
        self.virtual.clear()
        self.virtual.update(self._rules.virtual)

    def _assemble(self, stored: Sequence[StoredRule]) -> RuleSet:
        return assemble_rules(self._config, stored, providers=self._providers)
