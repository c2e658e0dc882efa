"""Removals: models of the library that go, by name or by age and size, and what they spare."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio
import anyio.to_thread
import msgspec
from msgspec.structs import replace

from gateway.core.errors import DatabaseUnavailable, GatewayError, InvalidRequest, ModelInUse
from gateway.core.library import CleanPlan, CleanRule, ShelvedModel, plan_cleanup
from gateway.core.loading import ModelStatus
from gateway.core.names import ModelRef
from gateway.core.ports import ModelRemover, ModelShelf
from gateway.core.states import ModelState
from gateway.services.catalog import Catalog
from gateway.services.control import ModelControlService
from gateway.services.file_records import FileRecords
from gateway.services.leftovers import Leftovers

logger = logging.getLogger(__name__)

DAY_S = 86_400
MAX_DAYS = 36_500
PROVIDER = "huggingface"
"""Whose models the library's files are."""

UnderWay = Callable[[], Awaitable[frozenset[str]]]
"""Names the repositories that downloads are at: what they count on must not be removed."""


class Removed(msgspec.Struct, frozen=True):
    """What a removal freed, in bytes; None where the provider does not tell."""

    id: str
    freed_bytes: int | None


class Removals:
    """Takes models off the disk, one at a time."""

    def __init__(
        self,
        shelf: ModelShelf,
        records: FileRecords,
        catalog: Catalog,
        control: ModelControlService,
        *,
        removers: Mapping[str, ModelRemover],
        under_way: UnderWay,
        leftovers: Leftovers | None,
        now: Callable[[], float],
    ) -> None:
        """`now` is Unix seconds; `removers` are the providers that remove their own models;
        `leftovers` None: nothing is downloaded here."""
        self._shelf = shelf
        self._records = records
        self._catalog = catalog
        self._control = control
        self._removers = removers
        self._under_way = under_way
        self._leftovers = leftovers
        self._now = now
        self._removing = anyio.Lock()

    async def delete(self, ref: ModelRef) -> Removed:
        """Remove a model's files; a repository's plain name means all of its revisions.

        An idle model is unloaded first. Raises ModelInUse while somebody uses it, it is on its way
        into memory or its repository is being downloaded, ModelNotFound, and Forbidden for what is
        built in.
        """
        async with self._removing:
            if ref.provider in self._removers:
                await self._removers[ref.provider].delete(ref)
                self._catalog.forget()
                return Removed(str(ref), None)
            freed = await self._remove(ref.qualified_model)
        return Removed(str(ref), freed)

    async def clean(
        self,
        *,
        unused_days: float | None,
        max_bytes: int | None,
        unfinished_days: float | None,
        dry_run: bool,
    ) -> CleanPlan:
        """Remove models of the Hub's cache by their age and their size together, and return what
        went; with `dry_run`, what would go. Models in memory are kept, and so is what cannot be
        removed now or whose repository is being downloaded.

        With `unfinished_days`, what downloads left behind and nobody added to for so long goes,
        too; see Leftovers.clean. Raises InvalidRequest.
        """
        for name, days in (("unused_days", unused_days), ("unfinished_days", unfinished_days)):
            if days is not None and not 0 <= days <= MAX_DAYS:
                raise InvalidRequest(f"'{name}' is 0 to {MAX_DAYS}.", param=name)
        if max_bytes is not None and max_bytes < 0:
            raise InvalidRequest("'max_bytes' is at least 0.", param="max_bytes")
        inventory = await anyio.to_thread.run_sync(self._shelf.inventory)
        since = None if unused_days is None else self._now() - unused_days * DAY_S
        busy = await self._under_way()
        models = [model for model in inventory.models if model.model.source == "hub"]
        coming = {model.name for model in models if model.repository in busy}
        plan = plan_cleanup(
            models,
            CleanRule(since, max_bytes),
            last_used=self._records.last_used(),
            in_use=coming.union(s.ref.qualified_model for s in await self._resident()),
        )
        plan = plan if dry_run else await self._carry_out(plan, models)
        if unfinished_days is None or self._leftovers is None:
            return plan
        left = await self._leftovers.clean(older_s=unfinished_days * DAY_S, dry_run=dry_run)
        return replace(plan, unfinished=tuple(left))

    async def _carry_out(self, plan: CleanPlan, models: Sequence[ShelvedModel]) -> CleanPlan:
        """Return the plan as it came out: what cannot be removed now is kept."""
        by_name = {model.name: model for model in models}
        kept: list[str] = []
        async with self._removing:
            for removal in plan.removals:
                try:
                    await self._remove(_pinned(by_name[removal.name]))
                except GatewayError as error:
                    logger.warning("%s is not cleaned up: %s", removal.name, error.message)
                    kept.append(removal.name)
        return plan.without(kept)

    async def _remove(self, name: str) -> int:
        """Remove files by the library's own name of a model, once nobody needs them."""
        inventory = await anyio.to_thread.run_sync(self._shelf.inventory)
        going = [model for model in inventory.models if _goes_with(model, name)]
        repositories = {name, *(model.repository or "" for model in going)}
        coming = repositories & await self._under_way()
        if coming:
            raise ModelInUse(
                f"'{min(coming)}' is being downloaded.",
                hint="Wait until the download has ended, pause it or cancel it.",
                param="model",
            )
        known = {model.name for model in going} | {name, *(map(_pinned, going))}
        for status in await self._resident():
            if status.ref.qualified_model in known:
                if status.leases or status.queued or status.state is not ModelState.LOADED:
                    raise ModelInUse(f"{status.ref} is in use.", param="model")
                await self._control.unload(str(status.ref), wait=True)
        freed = await anyio.to_thread.run_sync(self._shelf.remove, name)
        self._catalog.forget()
        paths = [model.model.path for model in going]
        logger.info("%s was removed: %d bytes", name, freed)
        try:
            await self._records.forget(paths)
        except DatabaseUnavailable as error:  # the next start finds that they are gone
            logger.warning("the removal of %s is not recorded: %s", name, error.message)
        return freed

    async def _resident(self) -> list[ModelStatus]:
        """Return the library's models that are in memory or on their way."""
        out = (ModelState.NOT_LOADED, ModelState.FAILED)
        statuses = await self._control.statuses()
        return [s for s in statuses if s.ref.provider == PROVIDER and s.state not in out]


def _goes_with(model: ShelvedModel, name: str) -> bool:
    """Tell whether removing what `name` names takes this model's files."""
    return name in (model.name, model.repository, _pinned(model))


def _pinned(model: ShelvedModel) -> str:
    """Return the name of this revision alone: a plain one means all of a repository."""
    revision = model.model.revision
    return model.model.name if revision is None else f"{model.model.name}@{revision}"
