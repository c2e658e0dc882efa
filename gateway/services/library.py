"""LibraryService: the models on this machine: listed, verified, removed, cleaned up."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec
from msgspec.structs import replace

from gateway.core.errors import (
    DatabaseUnavailable,
    GatewayError,
    InvalidRequest,
    ModelInUse,
    ModelNotFound,
    ModelRefused,
    UnsupportedCapability,
)
from gateway.core.library import (
    Check,
    CleanPlan,
    CleanRule,
    DiskUse,
    FileRecord,
    Inventory,
    Oddity,
    ShelvedModel,
    Verdict,
    Verification,
    plan_cleanup,
)
from gateway.core.loading import ModelStatus
from gateway.core.models import LocalModel, ModelInfo
from gateway.core.names import ModelRef, parse_ref
from gateway.core.ports import FileStore, HubRevisions, LoadTester, ModelRemover, ModelShelf
from gateway.core.routing import resolve_name
from gateway.core.states import ModelState
from gateway.services.catalog import Catalog, ProviderFault
from gateway.services.control import ModelControlService

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 60.0
MAX_DAYS = 36_500
PROVIDER = "huggingface"
"""Whose models the library's files are."""

UnderWay = Callable[[], Awaitable[frozenset[str]]]
"""Names the repositories that downloads are at: what they count on must not be removed."""


async def _none_under_way() -> frozenset[str]:
    return frozenset()


class LibraryEntry(msgspec.Struct, frozen=True):
    """One model's files and what is known of them; None is unknown. Times are Unix seconds."""

    model: ShelvedModel
    first_seen: float | None = None
    last_used: float | None = None
    verification: Verification | None = None
    update_available: bool | None = None

    @property
    def id(self) -> str:
        return f"{PROVIDER}/{self.model.name}"

    @property
    def is_usable(self) -> bool:
        """Whether nothing that is known speaks against loading it."""
        found = self.verification
        is_sound = found is None or found.verdict is Verdict.OK
        return self.model.is_served and self.model.model.problem is None and is_sound


class LibraryListing(msgspec.Struct, frozen=True):
    """All models that could be used, by where they lie."""

    local: tuple[LibraryEntry, ...]
    hub: tuple[LibraryEntry, ...]
    ollama: tuple[ModelInfo, ...]
    oddities: tuple[Oddity, ...]
    disks: tuple[DiskUse, ...]
    faults: tuple[ProviderFault, ...]


class VerifiedEntry(msgspec.Struct, frozen=True):
    """What a verification came to; `is_fresh` is false for a result that was kept."""

    entry: LibraryEntry
    warnings: tuple[str, ...]
    is_fresh: bool


class Removed(msgspec.Struct, frozen=True):
    """What a removal freed, in bytes; None where the provider does not tell."""

    id: str
    freed_bytes: int | None


class LibraryService:
    """Looks at the library every minute, verifies the headers of what is new, and keeps what it
    found. Removals are one at a time; so are verifications, which read whole files."""

    def __init__(
        self,
        shelf: ModelShelf,
        store: FileStore,
        catalog: Catalog,
        control: ModelControlService,
        *,
        node: str,
        test_load: LoadTester,
        removers: Mapping[str, ModelRemover],
        revisions: HubRevisions | None = None,
        under_way: UnderWay = _none_under_way,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`revisions` None: nobody knows what the Hub has."""
        self._shelf = shelf
        self._store = store
        self._catalog = catalog
        self._control = control
        self._node = node
        self._test_load = test_load
        self._removers = removers
        self._revisions = revisions
        self._under_way = under_way
        self._now = now
        self._records: dict[str, FileRecord] = {}
        self._used: dict[str, float] = {}
        self._is_loaded = False
        self._removing = anyio.Lock()
        self._verifying = anyio.Lock()
        self._recording = anyio.Lock()
        self._asked = anyio.Event()

    def note_used(self, model: LocalModel) -> None:
        """Take note that a model is used now; never blocks. It is written within a minute."""
        self._used[model.path] = self._now()

    async def run(self) -> None:
        """Finish what an earlier run began to remove, then look for ever; end it by cancelling."""
        await anyio.to_thread.run_sync(self._shelf.empty_trash)
        while True:
            self._asked = anyio.Event()
            try:
                await self.look()
            except DatabaseUnavailable as error:
                logger.warning("the library is not recorded for now: %s", error.message)
            except Exception:  # whatever lies on a disk must not end the gateway
                logger.exception("the library could not be looked at")
            with anyio.move_on_after(LOOK_EVERY_S):
                await self._asked.wait()

    def look_soon(self) -> None:
        """Have `run` look again as soon as it can: something came."""
        self._asked.set()

    async def look(self) -> None:
        """Verify the headers of what is new or was changed, and write what is not yet kept."""
        # Alone: who records what came after the inventory was made would be forgotten again.
        async with self._recording:
            await self._load_records()
            inventory = await anyio.to_thread.run_sync(self._shelf.inventory)
            changed = []
            for model in inventory.models:
                before = self._records.get(model.model.path)
                record = await self._renew(model, before)
                if record != before:
                    changed.append(record)
            await self._keep(changed)
            await self._forget_missing(inventory)

    async def _load_records(self) -> None:
        if not self._is_loaded:
            kept = {record.path: record for record in await self._store.all(self._node)}
            self._records = kept | self._records
            self._is_loaded = True

    async def write_last(self) -> None:
        """Write when models were used last, for a gateway that stops."""
        records = [self._renewed(record) for record in self._records.values()]
        try:
            await self._keep([r for r in records if r != self._records[r.path]])
        except DatabaseUnavailable as error:
            logger.warning("when models were used last is not recorded: %s", error.message)

    async def listing(self) -> LibraryListing:
        """Return what is there now; never raises for a provider's fault."""
        inventory = await anyio.to_thread.run_sync(self._shelf.inventory)
        entries = [await self._entry(model) for model in inventory.models]
        listing = await self._catalog.listing()
        return LibraryListing(
            local=tuple(each for each in entries if each.model.model.source != "hub"),
            hub=tuple(each for each in entries if each.model.model.source == "hub"),
            ollama=tuple(listing.of("ollama")),
            oddities=inventory.oddities,
            disks=inventory.disks,
            faults=listing.faults,
        )

    async def verify(
        self, name: str, check: Check = Check.CHECKSUMS, *, force: bool = False
    ) -> VerifiedEntry:
        """Verify a model as far as `check` says, unless files that are still the same were before;
        with `force`, in any case. The verdict is kept.

        Raises ModelNotFound; ModelTooLarge and ProviderTimeout where a load test met its limits.
        """
        model = await self._find(name)
        async with self._verifying:
            async with self._recording:
                await self._load_records()
            kept = self._verification_of(model)
            is_fresh = force or kept is None or not kept.covers(model.stamp, check)
            if is_fresh:
                await self._judge(model, await self._examine(model, check))
            warnings = await anyio.to_thread.run_sync(self._shelf.find_warnings, model)
        return VerifiedEntry(await self._entry(model), tuple(warnings), is_fresh)

    async def delete(self, name: str) -> Removed:
        """Remove a model's files; a repository's plain name means all of its revisions.

        An idle model is unloaded first. Raises ModelInUse while somebody uses it, it is on its way
        into memory or its repository is being downloaded, ModelNotFound, and Forbidden for what is
        built in.
        """
        ref = await self._resolve(name)
        async with self._removing:
            if ref.provider in self._removers:
                await self._removers[ref.provider].delete(ref)
                self._catalog.forget()
                return Removed(str(ref), None)
            freed = await self._remove(ref.qualified_model)
        return Removed(str(ref), freed)

    async def clean(
        self, *, unused_days: float | None, max_bytes: int | None, dry_run: bool
    ) -> CleanPlan:
        """Remove models of the Hub's cache by their age and their size together, and return what
        went; with `dry_run`, what would go. Models in memory are kept, and so is what cannot be
        removed now or whose repository is being downloaded. Raises InvalidRequest."""
        if unused_days is not None and not 0 <= unused_days <= MAX_DAYS:
            raise InvalidRequest(f"'unused_days' is 0 to {MAX_DAYS}.", param="unused_days")
        if max_bytes is not None and max_bytes < 0:
            raise InvalidRequest("'max_bytes' is at least 0.", param="max_bytes")
        inventory = await anyio.to_thread.run_sync(self._shelf.inventory)
        since = None if unused_days is None else self._now() - unused_days * 86_400
        busy = await self._under_way()
        models = [model for model in inventory.models if model.model.source == "hub"]
        coming = {model.name for model in models if model.repository in busy}
        plan = plan_cleanup(
            models,
            CleanRule(since, max_bytes),
            last_used=self._last_used(),
            in_use=coming.union(s.ref.qualified_model for s in await self._resident()),
        )
        return plan if dry_run else await self._carry_out(plan, models)

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
        for path in paths:
            self._records.pop(path, None)
            self._used.pop(path, None)
        logger.info("%s was removed: %d bytes", name, freed)
        try:
            await self._store.forget(self._node, paths)
        except DatabaseUnavailable as error:  # the next start finds that they are gone
            logger.warning("the removal of %s is not recorded: %s", name, error.message)
        return freed

    async def _resident(self) -> list[ModelStatus]:
        """Return the library's models that are in memory or on their way."""
        out = (ModelState.NOT_LOADED, ModelState.FAILED)
        statuses = await self._control.statuses()
        return [s for s in statuses if s.ref.provider == PROVIDER and s.state not in out]

    async def _find(self, name: str) -> ShelvedModel:
        ref = await self._resolve(name)
        if ref.provider != PROVIDER:
            raise UnsupportedCapability(
                f"{ref} is not in this library: its provider looks after its files.", param="model"
            )
        found = await anyio.to_thread.run_sync(self._shelf.find, ref.qualified_model)
        if found is None:
            raise ModelNotFound(str(ref))
        return found

    async def _resolve(self, name: str) -> ModelRef:
        """Return the ref of a name in any form that requests may use; what lies in the library is
        found by its bare name, too, whether it can be served or not."""
        providers = {PROVIDER, *self._removers}
        provider, slash, rest = name.partition("/")
        if slash and provider in providers:
            return parse_ref(provider, rest)
        bare = parse_ref(PROVIDER, name)
        if await anyio.to_thread.run_sync(self._shelf.find, bare.qualified_model) is not None:
            return bare
        catalogue = (await self._catalog.known()).catalogue
        return resolve_name(name, providers=providers, catalogue=catalogue, aliases={})

    async def _entry(self, model: ShelvedModel) -> LibraryEntry:
        record = self._records.get(model.model.path)
        return LibraryEntry(
            model=model,
            first_seen=None if record is None else record.first_seen,
            last_used=self._last_used().get(model.model.path),
            verification=self._verification_of(model),
            update_available=await self._has_update(model),
        )

    async def _has_update(self, model: ShelvedModel) -> bool | None:
        if self._revisions is None or model.repository is None or "main" not in model.refs:
            return None
        latest = await self._revisions.latest_commit(model.repository)
        return None if latest is None else latest != model.model.revision

    def _verification_of(self, model: ShelvedModel) -> Verification | None:
        """Return the verdict on the files as they are now."""
        record = self._records.get(model.model.path)
        kept = None if record is None else record.verification
        return kept if kept is not None and kept.stamp == model.stamp else None

    def _last_used(self) -> dict[str, float]:
        kept = {path: at for path, r in self._records.items() if (at := r.last_used) is not None}
        return kept | self._used

    async def _renew(self, model: ShelvedModel, before: FileRecord | None) -> FileRecord:
        """Return what is to be kept of a model now; looks into its headers if nobody has yet."""
        verification = self._verification_of(model)
        if verification is None:
            verification = await self._examine(model, Check.HEADERS)
        if verification.verdict is Verdict.CORRUPT and model.model.problem is None:
            self._shelf.judge(model, verification.reason)
        return self._record(model, before, verification)

    def _record(
        self, model: ShelvedModel, before: FileRecord | None, verification: Verification | None
    ) -> FileRecord:
        return self._renewed(
            FileRecord(
                path=model.model.path,
                name=model.name,
                source=model.model.source,
                size_bytes=model.size_bytes,
                first_seen=round(self._now(), 6) if before is None else before.first_seen,
                repository=model.repository,
                commit=model.model.revision,
                last_used=None if before is None else before.last_used,
                verification=verification,
            )
        )

    def _renewed(self, record: FileRecord) -> FileRecord:
        at = self._used.get(record.path)
        return record if at is None else replace(record, last_used=round(at, 6))

    async def _examine(self, model: ShelvedModel, check: Check) -> Verification:
        """Return the verdict on a model's files. Cancelling it ends the reading."""
        go_on = None if check is Check.HEADERS else anyio.from_thread.check_cancelled
        find_fault = partial(self._shelf.find_fault, model, go_on)
        verdict, reason = Verdict.CORRUPT, await anyio.to_thread.run_sync(find_fault)
        if reason is None:
            reason = await anyio.to_thread.run_sync(self._shelf.find_refusal, model)
            verdict = Verdict.OK if reason is None else Verdict.REFUSED
        if verdict is Verdict.OK and check is Check.LOAD:
            try:
                reason = await self._test_load(model)
                verdict = Verdict.OK if reason is None else Verdict.CORRUPT
            except ModelRefused as error:
                verdict, reason = Verdict.REFUSED, error.message
        return Verification(verdict, check, model.stamp, round(self._now(), 6), reason)

    async def _judge(self, model: ShelvedModel, found: Verification) -> None:
        is_corrupt = found.verdict is Verdict.CORRUPT
        self._shelf.judge(model, found.reason if is_corrupt else None)
        self._catalog.forget()
        async with self._recording:
            await self._keep([self._record(model, self._records.get(model.model.path), found)])

    async def _keep(self, records: Sequence[FileRecord]) -> None:
        self._records |= {record.path: record for record in records}
        await self._store.put(self._node, records)

    async def _forget_missing(self, inventory: Inventory) -> None:
        there = {model.model.path for model in inventory.models}
        gone = [path for path in self._records if path not in there]
        for path in gone:
            del self._records[path]
        await self._store.forget(self._node, gone)


def _goes_with(model: ShelvedModel, name: str) -> bool:
    """Tell whether removing what `name` names takes this model's files."""
    return name in (model.name, model.repository, _pinned(model))


def _pinned(model: ShelvedModel) -> str:
    """Return the name of this revision alone: a plain one means all of a repository."""
    revision = model.model.revision
    return model.model.name if revision is None else f"{model.model.name}@{revision}"
