"""LibraryService: the models on this machine: listed, verified, removed, cleaned up."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec

from gateway.core.errors import (
    DatabaseUnavailable,
    ModelNotFound,
    ModelRefused,
    UnsupportedCapability,
)
from gateway.core.library import (
    Check,
    CleanPlan,
    DiskUse,
    FileRecord,
    Oddity,
    ShelvedModel,
    Verdict,
    Verification,
)
from gateway.core.models import LocalModel, ModelInfo
from gateway.core.names import ModelRef, parse_ref
from gateway.core.ports import FileStore, HubRevisions, LoadTester, ModelRemover, ModelShelf
from gateway.core.routing import resolve_name
from gateway.services.catalog import Catalog, ProviderFault
from gateway.services.control import ModelControlService
from gateway.services.file_records import FileRecords
from gateway.services.leftovers import Leftovers
from gateway.services.removals import PROVIDER, Removals, Removed, UnderWay
from gateway.services.updates import Updates, is_outdated

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 60.0


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
        leftovers: Leftovers | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`revisions` None: nobody knows what the Hub has."""
        self._shelf = shelf
        self._catalog = catalog
        self._test_load = test_load
        self._removers = removers
        self._updates = Updates(revisions)
        self._now = now
        self._records = FileRecords(store, node=node, now=now)
        self._removals = Removals(
            shelf,
            self._records,
            catalog,
            control,
            removers=removers,
            under_way=under_way,
            leftovers=leftovers,
            now=now,
        )
        self._verifying = anyio.Lock()
        self._asked = anyio.Event()

    def note_used(self, model: LocalModel) -> None:
        """Take note that a model is used now; never blocks. It is written within a minute."""
        self._records.note_used(model.path)

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
        async with self._records.lock:
            await self._records.load()
            inventory = await anyio.to_thread.run_sync(self._shelf.inventory)
            changed = []
            for model in inventory.models:
                record = await self._renew(model)
                if record != self._records.find(model):
                    changed.append(record)
            await self._records.keep(changed)
            await self._records.forget_missing(inventory)

    async def listing(self, *, updates: bool = False) -> LibraryListing:
        """Return what is there now; never raises for a provider's fault. With `updates` the Hub is
        asked for what is newest, unless that is remembered."""
        inventory = await anyio.to_thread.run_sync(self._shelf.inventory)
        fault = await self._updates.look_up(inventory.models) if updates else None
        commits = await self._updates.latest_commits(inventory.models)
        entries = [self._entry(model, commits) for model in inventory.models]
        listing = await self._catalog.listing()
        return LibraryListing(
            local=tuple(each for each in entries if each.model.model.source != "hub"),
            hub=tuple(each for each in entries if each.model.model.source == "hub"),
            ollama=tuple(listing.of("ollama")),
            oddities=inventory.oddities,
            disks=inventory.disks,
            faults=(*listing.faults, *([fault] if fault is not None else [])),
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
            async with self._records.lock:
                await self._records.load()
            kept = self._records.verification_of(model)
            is_fresh = force or kept is None or not kept.covers(model.stamp, check)
            if is_fresh:
                await self._judge(model, await self._examine(model, check))
            warnings = await anyio.to_thread.run_sync(self._shelf.find_warnings, model)
        commits = await self._updates.latest_commits([model])
        return VerifiedEntry(self._entry(model, commits), tuple(warnings), is_fresh)

    async def write_last(self) -> None:
        """Write when models were used last, for a gateway that stops."""
        await self._records.write_last()

    async def delete(self, name: str) -> Removed:
        """Remove a model's files; see Removals.delete. Raises also ModelNotFound."""
        return await self._removals.delete(await self._resolve(name))

    async def clean(
        self,
        *,
        unused_days: float | None,
        max_bytes: int | None,
        unfinished_days: float | None,
        dry_run: bool,
    ) -> CleanPlan:
        """Remove models by their age and their size together, and what downloads left behind; see
        Removals.clean."""
        return await self._removals.clean(
            unused_days=unused_days,
            max_bytes=max_bytes,
            unfinished_days=unfinished_days,
            dry_run=dry_run,
        )

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

    def _entry(self, model: ShelvedModel, commits: Mapping[str, str]) -> LibraryEntry:
        """Return what is known of a model; `commits` are the newest ones of repositories."""
        record = self._records.find(model)
        return LibraryEntry(
            model=model,
            first_seen=None if record is None else record.first_seen,
            last_used=self._records.last_used_of(model),
            verification=self._records.verification_of(model),
            update_available=is_outdated(model, commits),
        )

    async def _renew(self, model: ShelvedModel) -> FileRecord:
        """Return what is to be kept of a model now; looks into its headers if nobody has yet."""
        verification = self._records.verification_of(model)
        if verification is None:
            verification = await self._examine(model, Check.HEADERS)
        if verification.verdict is Verdict.CORRUPT and model.model.problem is None:
            self._shelf.judge(model, verification.reason)
        return self._records.make(model, verification)

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
        async with self._records.lock:
            await self._records.keep([self._records.make(model, found)])
