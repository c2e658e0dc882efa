"""The models on this machine's disks: what is known of each, and which of them a clean-up removes.

Pure: looks at no disk and at no clock.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from gateway.core.leftovers import Leftover
from gateway.core.models import LocalModel


class Verdict(StrEnum):
    """What looking into the files came to; REFUSED: sound, but nothing that is loaded here."""

    OK = "ok"
    CORRUPT = "corrupt"
    REFUSED = "refused"


class Check(StrEnum):
    """How far a verification went; each takes in those before it."""

    HEADERS = "headers"
    CHECKSUMS = "checksums"
    LOAD = "load"


class Verification(msgspec.Struct, frozen=True):
    """The verdict on files that had this `stamp`; `at` is Unix seconds."""

    verdict: Verdict
    check: Check
    stamp: str
    at: float
    reason: str | None = None

    def covers(self, stamp: str, check: Check) -> bool:
        """Whether another look at files of this stamp could not find more."""
        order = list(Check)
        went_far = order.index(self.check) >= order.index(check)
        return self.stamp == stamp and (went_far or self.verdict is not Verdict.OK)


class ModelFile(msgspec.Struct, frozen=True):
    """One file of a model: its name there, and where it really is."""

    name: str
    path: str
    size_bytes: int


class ShelvedModel(msgspec.Struct, frozen=True):
    """A model's files; snapshots of one repository may share some. `strays` are the names of what
    lies beside them and is no regular file, or a link that leads out or nowhere.

    `stamp` differs once a file does; `updated_at` is Unix seconds; `refs` are the branches and tags
    of the Hub that mean it. `is_default`: its name needs no revision.
    """

    model: LocalModel
    stamp: str
    updated_at: float
    files: tuple[ModelFile, ...]
    strays: tuple[str, ...] = ()
    repository: str | None = None
    refs: tuple[str, ...] = ()
    is_default: bool = True
    is_served: bool = True

    @property
    def name(self) -> str:
        """The name that requests use: with the revision where the plain name means another."""
        model = self.model
        return model.name if self.is_default else f"{model.name}@{model.revision}"

    @property
    def sizes(self) -> Mapping[str, int]:
        """The bytes of each file, by where it really is."""
        return {file.path: file.size_bytes for file in self.files}

    @property
    def size_bytes(self) -> int:
        return sum(self.sizes.values())


class Oddity(msgspec.Struct, frozen=True):
    """Something in the library's folders that is no model; `reason` is a sentence."""

    path: str
    reason: str


class DiskUse(msgspec.Struct, frozen=True):
    """A folder of models and the disk it is on, in bytes; None for a disk that does not tell."""

    path: str
    models_bytes: int
    free_bytes: int | None
    total_bytes: int | None


class Inventory(msgspec.Struct, frozen=True):
    """All that lies in the library's folders."""

    models: tuple[ShelvedModel, ...]
    oddities: tuple[Oddity, ...]
    disks: tuple[DiskUse, ...]


class FileRecord(msgspec.Struct, frozen=True):
    """What the database keeps of a model's files; times are Unix seconds."""

    path: str
    name: str
    source: str
    size_bytes: int
    first_seen: float
    repository: str | None = None
    commit: str | None = None
    last_used: float | None = None
    verification: Verification | None = None


class CleanRule(msgspec.Struct, frozen=True):
    """What a clean-up removes: models that nobody used since, and the least recently used ones
    until the rest has at most `max_bytes`. None: it is no reason."""

    unused_since: float | None = None
    max_bytes: int | None = None


class Removal(msgspec.Struct, frozen=True):
    """One model that a clean-up removes; `frees_bytes` is what that gives after those before it."""

    name: str
    reason: str
    frees_bytes: int


class CleanPlan(msgspec.Struct, frozen=True):
    """The removals in their order, what all models take now, and what is left of it."""

    removals: tuple[Removal, ...]
    before_bytes: int
    after_bytes: int
    kept: tuple[str, ...] = ()
    """Models that had to go by the rule, and are in use or could not be removed."""
    unfinished: tuple[Leftover, ...] = ()
    """What downloads left behind, which no model's bytes count."""

    def without(self, names: Collection[str]) -> "CleanPlan":
        """Return the plan where these were kept after all."""
        removals = tuple(each for each in self.removals if each.name not in names)
        stays = sum(each.frees_bytes for each in self.removals if each.name in names)
        return replace(
            self,
            removals=removals,
            after_bytes=self.after_bytes + stays,
            kept=(*self.kept, *names),
        )


def plan_cleanup(
    models: Sequence[ShelvedModel],
    rule: CleanRule,
    *,
    last_used: Mapping[str, float],
    in_use: Set[str],
) -> CleanPlan:
    """Return what `rule` removes of `models`, the least recently used first.

    `last_used` is by path; a model that nobody used yet counts from when its files came. What is
    `in_use`, by name, is kept. Files that several models share are freed with the last of them.
    """

    def used_at(model: ShelvedModel) -> float:
        return last_used.get(model.model.path, model.updated_at)

    sizes = {path: size for model in models for path, size in model.sizes.items()}
    holders = Counter(path for model in models for path in model.sizes)
    left = before = sum(sizes.values())
    removals: list[Removal] = []
    kept: list[str] = []
    for model in sorted(models, key=lambda each: (used_at(each), each.name)):
        reason = _reason_to_remove(used_at(model), left, rule)
        if reason is None:
            continue
        if model.name in in_use:
            kept.append(model.name)
            continue
        holders.subtract(list(model.sizes))
        freed = sum(sizes[path] for path in model.sizes if holders[path] == 0)
        left -= freed
        removals.append(Removal(model.name, reason, freed))
    return CleanPlan(tuple(removals), before, left, tuple(kept))


def _reason_to_remove(used_at: float, left_bytes: int, rule: CleanRule) -> str | None:
    if rule.unused_since is not None and used_at < rule.unused_since:
        return "age"
    if rule.max_bytes is not None and left_bytes > rule.max_bytes:
        return "size"
    return None
