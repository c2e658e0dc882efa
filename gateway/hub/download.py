"""Downloads from the Hub into its cache: what is to be fetched, and the fetching.

What is in a repository is told by `tree`, the bytes of its files come by `transfer`, the disk is
for `repository`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from gateway.core.downloads import (
    DownloadOrder,
    DownloadPlan,
    Fetched,
    RemoteFile,
    Tally,
)
from gateway.core.errors import (
    HubProtocolError,
    InsufficientStorage,
    StorageFailed,
)
from gateway.hub.layout import folder_name
from gateway.hub.leftovers import discard_leftovers
from gateway.hub.repository import Repository, Survey
from gateway.hub.transfer import Bytes, Job, NotSame, Transfer
from gateway.hub.tree import Pages, read_tree

MAX_ROUNDS = 3
"""How often files that were removed while others came are fetched again."""
LOCK_EVERY_S = 0.2

T = TypeVar("T")


class Hub(Pages, Bytes, Protocol):
    """What is needed of `hub.client.HubClient`."""


class HubDownloads:
    """A core.ports.DownloadSource: models of the Hub. Keeps `reserve_bytes` of the disk free."""

    def __init__(
        self,
        hub: Hub,
        cache: Path,
        *,
        place: str,
        reserve_bytes: int,
        connections: int,
        clock: Callable[[], float] = monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`connections` is how many files of one download are fetched at once; `clock` is
        monotonic seconds."""
        self.place = place
        self._hub = hub
        self._cache = cache
        self._reserve_bytes = reserve_bytes
        self._connections = connections
        self._sleep = sleep
        self._threads = anyio.CapacityLimiter(8)
        self._transfer = Transfer(
            hub, self._threads, reserve_bytes=reserve_bytes, clock=clock, sleep=sleep
        )
        self._running: set[Tally] = set()

    async def plan(self, order: DownloadOrder) -> DownloadPlan:
        """Return what `fetch` would do now, asking the Hub; writes nothing."""
        commit, files = await read_tree(self._hub, order, None)
        found = await self._in_thread(Repository.peek, self._cache, order.repo, commit, files)
        left = found.bytes_total if order.force else found.bytes_left
        snapshot = self._cache / folder_name(order.repo) / "snapshots" / commit
        return DownloadPlan(
            order=order,
            commit=commit,
            files=files,
            bytes_total=found.bytes_total,
            bytes_to_fetch=left,
            free_bytes=found.free_bytes,
            fits=not left or left + self._owed() + self._reserve_bytes <= found.free_bytes,
            path=str(snapshot) if found.is_published else None,
        )

    async def fetch(
        self, order: DownloadOrder, tally: Tally, *, commit: str | None, since: float
    ) -> Fetched:
        """Have the files in the cache; returns when they are published.

        `commit` is what an earlier run of the same download resolved, `since` (Unix seconds) when
        it was ordered: what is younger is not fetched again by force. Cancelling keeps what was
        fetched. Raises HubError, UnsafeRepository, ChecksumMismatch, InsufficientStorage,
        StorageFailed.
        """
        self._running.add(tally)
        try:
            return await self._fetch(order, tally, commit, since)
        finally:
            self._running.discard(tally)

    async def discard(self, order: DownloadOrder) -> None:
        """Delete what no snapshot of the repository shows, but for what others are at."""
        if not await self._in_thread((self._cache / folder_name(order.repo)).is_dir):
            return
        async with self._repository(order) as repository:
            await self._in_thread(discard_leftovers, repository)

    async def _fetch(
        self, order: DownloadOrder, tally: Tally, commit: str | None, since: float
    ) -> Fetched:
        try:
            return await self._fetch_commit(order, tally, commit, since)
        except NotSame:
            # The branch was rewritten between the list of its files and their bytes.
            tally.commit = None
        try:
            return await self._fetch_commit(order, tally, None, since)
        except NotSame as change:
            raise HubProtocolError(f"The Hub's file {change} is not what it lists.") from None

    async def _fetch_commit(
        self, order: DownloadOrder, tally: Tally, commit: str | None, since: float
    ) -> Fetched:
        commit, files = await read_tree(self._hub, order, commit)
        async with self._repository(order) as repository:
            job = Job(repository, order, commit, since if order.force else None, tally)
            survey = partial(repository.survey, commit, files, since=job.newer_than)
            found = await self._in_thread(survey)
            _begin(tally, commit, found)
            self._require_room(tally, found)
            await self._fetch_and_publish(job, files, found.missing)
            said = _describe(len(files), found.is_published)
            return Fetched(said, str(repository.snapshot(commit)), commit, found.is_published)

    async def _fetch_and_publish(
        self, job: Job, files: Sequence[RemoteFile], missing: Sequence[RemoteFile]
    ) -> None:
        """Fetch what is missing and publish all; what was removed meanwhile is missing, too."""
        revision = job.order.revision or "main"
        for _ in range(MAX_ROUNDS):
            await self._fetch_files(job, missing)
            publish = partial(job.repository.publish, job.commit, revision, files)
            missing = await self._in_thread(publish)
            if not missing:
                return
            job.tally.files_done -= len(missing)
            job.tally.bytes_lost += sum(file.size_bytes for file in missing)
        raise StorageFailed(f"Somebody removes the files of {job.order.repo} as they come.")

    def _require_room(self, tally: Tally, found: Survey) -> None:
        need = found.bytes_left + self._owed(tally) + self._reserve_bytes
        if found.bytes_left and need > found.free_bytes:
            raise InsufficientStorage(
                f"{found.bytes_left} bytes are to be fetched; with what others fetch and the "
                f"reserve that takes {need}, and {found.free_bytes} are free."
            )

    def _owed(self, but: Tally | None = None) -> int:
        """Return the bytes that running downloads have yet to write."""
        others = [tally for tally in self._running if tally is not but]
        return sum((tally.bytes_total or 0) - tally.bytes_done for tally in others)

    async def _fetch_files(self, job: Job, files: Sequence[RemoteFile]) -> None:
        """Fetch the files, some at once; the first failure ends the others and is raised."""
        limit = anyio.CapacityLimiter(self._connections)
        failures: list[Exception] = []

        async def one(file: RemoteFile) -> None:
            async with limit:
                try:
                    await self._fetch_file(job, file)
                except Exception as error:
                    failures.append(error)
                    tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for file in files:
                tasks.start_soon(one, file)
        if failures:
            raise failures[0]

    async def _fetch_file(self, job: Job, file: RemoteFile) -> None:
        async with self._locked(job.repository, file.blob):
            if job.repository.has_blob(file, since=job.newer_than):
                # Another download, or huggingface_hub, was quicker.
                job.tally.bytes_present += file.size_bytes
            else:
                await self._transfer.complete(job, file)
            job.tally.files_done += 1

    @asynccontextmanager
    async def _repository(self, order: DownloadOrder) -> AsyncIterator[Repository]:
        repository = await self._in_thread(Repository, self._cache, order.repo)
        try:
            yield repository
        finally:
            repository.close()

    @asynccontextmanager
    async def _locked(self, repository: Repository, blob: str) -> AsyncIterator[None]:
        """Hold the blob's lock; waits for whoever has it, also another process."""
        while (lock := await self._in_thread(repository.try_lock, blob)) is None:
            await self._sleep(LOCK_EVERY_S)
        try:
            yield
        finally:
            repository.unlock(lock)

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await anyio.to_thread.run_sync(partial(call, *arguments), limiter=self._threads)


def _describe(count: int, is_old: bool) -> str:
    if is_old:
        return "Everything is there already."
    return "1 file is there." if count == 1 else f"{count} files are there."


def _begin(tally: Tally, commit: str, found: Survey) -> None:
    tally.commit = commit
    tally.files_total = len(found.blobs)
    tally.files_done = len(found.blobs) - len(found.missing)
    tally.bytes_total = found.bytes_total
    tally.bytes_present = found.bytes_total - sum(file.size_bytes for file in found.missing)
    tally.bytes_fetched = tally.bytes_lost = 0
