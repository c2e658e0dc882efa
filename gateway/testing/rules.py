"""Aliases and virtual models, kept in memory."""

from collections.abc import Callable, Sequence

from gateway.core.rules import RuleDraft, StoredRule
from gateway.store.rules import require_version


class MemoryRuleStore:
    """A RuleStore that forgets everything with the process."""

    def __init__(self) -> None:
        self._rules: dict[str, StoredRule] = {}
        self._version = 0

    async def put(
        self,
        draft: RuleDraft,
        check: Callable[[Sequence[StoredRule]], None],
        *,
        expected: int | None,
        at: float,
        by: str,
    ) -> StoredRule:
        require_version(list(self._rules.values()), draft.name, expected)
        check(await self.all())
        self._version += 1
        written = self._rules[draft.name] = StoredRule(draft, self._version, at, by)
        return written

    async def remove(self, name: str, *, expected: int | None) -> bool:
        require_version(list(self._rules.values()), name, expected)
        self._version += 1
        return self._rules.pop(name, None) is not None

    async def all(self) -> Sequence[StoredRule]:
        return sorted(self._rules.values(), key=lambda rule: rule.draft.name)

    async def stamp(self) -> int:
        return self._version
