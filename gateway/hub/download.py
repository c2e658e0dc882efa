"""Downloads from the Hub into its cache: what is to be fetched, and the fetching.

Its own ranged reads instead of huggingface_hub's: that keeps no partial files (ADR 15). The disk
is for `repository`, the token and where it may go for `client`.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urljoin

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx2
import msgspec

from gateway.core.downloads import (
    MAX_FILES,
    DownloadOrder,
    DownloadPlan,
    Fetched,
    RemoteFile,
    Tally,
    choose_files,
    is_blob_name,
    is_commit,
    require_safe,
)
from gateway.core.errors import (
    ChecksumMismatch,
    HubError,
    HubProtocolError,
    HubRateLimited,
    HubUnavailable,
    InsufficientStorage,
    RepositoryNotFound,
    StorageFailed,
    UnsafeRepository,
)
from gateway.hub.client import HubReply, origin_of
from gateway.hub.layout import folder_name
from gateway.hub.repository import Partial, Repository, Survey

WRITE_BYTES = 2**20
"""How much is gathered before it is written: what a kill -9 can lose of each file."""
WRITE_S = 0.5
"""How long a slow file is gathered: progress is what is written."""
LOOK_AT_DISK_BYTES = 32 * 2**20
SEGMENT_BYTES = 32 * 2**30
"""The most that one request asks for: the Hub's second hosts refuse whole files beyond 50 GB."""
MAX_REDIRECTS = 5
MAX_TRIES = 6
"""Requests in a row that bring not a byte."""
MAX_ROUNDS = 3
"""How often files that were removed while others came are fetched again."""
LOCK_EVERY_S = 0.2
MAX_WAIT_S = 30
_BEYOND_END = frozenset({416})
_RETRIED = _BEYOND_END | {401, 403, 404, 408, 410, 500, 502, 503, 504}
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

T = TypeVar("T")


class Hub(Protocol):
    """What is needed of `hub.client.HubClient`."""

    async def get(self, path: str, params: Any = None) -> HubReply: ...

    def stream(
        self,
        method: str,
        path: str,
        *,
        headers: Any = None,
        follow: bool = True,
        accept: frozenset[int] = frozenset(),
    ) -> Any: ...


class _Entry(msgspec.Struct):
    type: str
    path: str
    size: int = 0
    oid: str = ""
    lfs: dict[str, Any] | None = None


class _Info(msgspec.Struct):
    sha: str


_TREE = msgspec.json.Decoder(list[_Entry])
_INFO = msgspec.json.Decoder(_Info)


class _NotSame(Exception):
    """The Hub offers another file under this name than it listed."""


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
        self._clock = clock
        self._sleep = sleep
        self._threads = anyio.CapacityLimiter(8)
        self._running: set[Tally] = set()

    async def plan(self, order: DownloadOrder) -> DownloadPlan:
        """Return what `fetch` would do now, asking the Hub; writes nothing."""
        commit, files = await self._look(order, None)
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
        """Delete what unfinished downloads of the repository left, but for running ones'."""
        if not await self._in_thread((self._cache / folder_name(order.repo)).is_dir):
            return
        async with self._repository(order) as repository:
            await self._in_thread(repository.discard_partials)

    async def _fetch(
        self, order: DownloadOrder, tally: Tally, commit: str | None, since: float
    ) -> Fetched:
        try:
            return await self._fetch_commit(order, tally, commit, since)
        except _NotSame:
            # The branch was rewritten between the list of its files and their bytes.
            tally.commit = None
        try:
            return await self._fetch_commit(order, tally, None, since)
        except _NotSame as change:
            raise HubProtocolError(f"The Hub's file {change} is not what it lists.") from None

    async def _fetch_commit(
        self, order: DownloadOrder, tally: Tally, commit: str | None, since: float
    ) -> Fetched:
        commit, files = await self._look(order, commit)
        async with self._repository(order) as repository:
            job = _Job(repository, order, commit, since if order.force else None, tally)
            survey = partial(repository.survey, commit, files, since=job.newer_than)
            found = await self._in_thread(survey)
            _begin(tally, commit, found)
            self._require_room(tally, found)
            await self._fetch_and_publish(job, files, found.missing)
            is_old = found.is_published
            said = "Everything is there already." if is_old else f"{len(files)} files are there."
            return Fetched(said, str(repository.snapshot(commit)), commit, is_old)

    async def _fetch_and_publish(
        self, job: "_Job", files: Sequence[RemoteFile], missing: Sequence[RemoteFile]
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

    async def _fetch_files(self, job: "_Job", files: Sequence[RemoteFile]) -> None:
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

    async def _fetch_file(self, job: "_Job", file: RemoteFile) -> None:
        async with self._locked(job.repository, file.blob):
            if job.repository.has_blob(file, since=job.newer_than):
                # Another download, or huggingface_hub, was quicker.
                job.tally.bytes_present += file.size_bytes
            else:
                await self._complete(job, file)
            job.tally.files_done += 1

    async def _complete(self, job: "_Job", file: RemoteFile) -> None:
        """Fetch what is missing of the file and make it a blob."""
        part = await self._in_thread(
            job.repository.open_partial, file, anyio.from_thread.check_cancelled
        )
        try:
            job.tally.bytes_present += part.length
            is_all_new = part.length == 0
            await self._receive_all(job, file, part)
            try:
                await self._in_thread(part.publish)
            except ChecksumMismatch:
                if is_all_new:
                    raise
                # What an earlier run left was not of this file: once more, from the start.
                job.tally.bytes_lost += file.size_bytes
                await self._receive_all(job, file, part)
                await self._in_thread(part.publish)
        finally:
            with anyio.CancelScope(shield=True):
                await self._in_thread(part.close)

    async def _receive_all(self, job: "_Job", file: RemoteFile, part: Partial) -> None:
        # A file that has to be begun anew has come no further until it passes where it was.
        tries, furthest, source = 0, part.length, _Source()
        while part.length < file.size_bytes:
            before = part.length
            try:
                await self._receive(job, file, part, source)
                error: HubError | None = None
            except (HubUnavailable, HubRateLimited, HubProtocolError) as failure:
                error = failure
            if part.length > furthest:
                tries, furthest = 0, part.length
            else:
                tries += 1
            if tries >= MAX_TRIES:
                raise error or HubProtocolError(f"The Hub does not send {file.path!r}.")
            # A host that cuts after a few bytes would be asked again as fast as it answers.
            if part.length < file.size_bytes and part.length - before < WRITE_BYTES:
                await self._sleep(_wait_s(max(tries, 1), error))

    async def _receive(
        self, job: "_Job", file: RemoteFile, part: Partial, source: "_Source"
    ) -> None:
        """Receive as much as one request brings."""
        url = f"/{job.order.repo}/resolve/{job.commit}/{quote(file.path)}"
        headers = _headers(part.length, file.size_bytes, source.etag)
        accept = _BEYOND_END
        for _ in range(MAX_REDIRECTS):
            async with self._hub.stream(
                "GET", url, headers=headers, follow=False, accept=accept
            ) as reply:
                _require_same(file, reply)
                if not reply.has_redirect_location:
                    return await self._take(job, file, part, reply, source)
                here = str(reply.request.url)
                url = urljoin(here, reply.headers["Location"])
            if here.startswith("https:") and not url.startswith("https:"):
                raise HubProtocolError("The Hub redirects from https to something less.")
            # Elsewhere a 403 is a signature that ran out, and no word on the repository.
            accept = _BEYOND_END if origin_of(url) == origin_of(here) else _RETRIED
        raise HubProtocolError("The Hub redirects in circles.")

    async def _take(
        self,
        job: "_Job",
        file: RemoteFile,
        part: Partial,
        reply: httpx2.Response,
        source: "_Source",
    ) -> None:
        """Write the body to the partial file, if it is the part that is missing."""
        if reply.status_code == 416:
            await self._restart(job, part)
        if reply.status_code not in (200, 206):
            raise HubUnavailable(f"A host of the Hub answered {reply.status_code}.")
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            raise HubProtocolError("The Hub sends the file compressed, which was not asked for.")
        if reply.status_code == 206:
            _require_range(reply, part.length, file.size_bytes)
        elif part.length:
            # It does not know ranges, or its file is another one by now.
            await self._restart(job, part)
        source.etag = reply.headers.get("ETag")
        gathered, written_at = bytearray(), self._clock()
        try:
            async for data in reply.aiter_raw():
                gathered += data
                if part.length + len(gathered) >= file.size_bytes:
                    del gathered[file.size_bytes - part.length :]
                    break
                if len(gathered) >= WRITE_BYTES or self._clock() - written_at >= WRITE_S:
                    # Taken out first: what fails here is not to be written once more below.
                    ready, gathered = gathered, bytearray()
                    await self._write(job, part, ready)
                    written_at = self._clock()
        finally:
            await self._write(job, part, gathered)

    async def _write(self, job: "_Job", part: Partial, data: bytearray) -> None:
        """Append to the partial file, also while being cancelled."""
        if not data:
            return
        before = part.length
        try:
            with anyio.CancelScope(shield=True):
                await self._in_thread(part.write, data)
        finally:
            job.tally.bytes_fetched += part.length - before
        if part.length // LOOK_AT_DISK_BYTES > before // LOOK_AT_DISK_BYTES:
            free = await self._in_thread(job.repository.free_bytes)
            if free < self._reserve_bytes:
                raise InsufficientStorage(f"Only {free} bytes are left on the disk.")

    async def _restart(self, job: "_Job", part: Partial) -> None:
        job.tally.bytes_lost += part.length
        await self._in_thread(part.restart)

    async def _look(
        self, order: DownloadOrder, commit: str | None
    ) -> tuple[str, tuple[RemoteFile, ...]]:
        """Return the commit of the revision and its files that the patterns want."""
        base = f"/api/models/{order.repo}"
        if commit is None:
            revision = quote(order.revision or "main", safe="")
            reply = await self._hub.get(f"{base}/revision/{revision}")
            commit = _decode(_INFO, reply.data).sha
        if not is_commit(commit):
            raise HubProtocolError("The Hub names a commit that is none.")
        files: list[RemoteFile] = []
        url: str | None = f"{base}/tree/{commit}?recursive=true"
        while url is not None:
            page = await self._hub.get(url)
            files += [_read_file(e) for e in _decode(_TREE, page.data) if e.type == "file"]
            if len(files) > MAX_FILES:
                raise UnsafeRepository(f"The repository has more than {MAX_FILES} files.")
            url = page.next_url
        chosen = choose_files(files, order.patterns)
        if not chosen:
            raise RepositoryNotFound("The repository has no file that the patterns fit.")
        return commit, chosen

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


class _Job(msgspec.Struct, frozen=True):
    """One run of a download; blobs must be `newer_than` that time to count as fetched."""

    repository: Repository
    order: DownloadOrder
    commit: str
    newer_than: float | None
    tally: Tally


class _Source:
    """What is known of the host that a file comes from."""

    etag: str | None = None


def _begin(tally: Tally, commit: str, found: Survey) -> None:
    tally.commit = commit
    tally.files_total = len(found.blobs)
    tally.files_done = len(found.blobs) - len(found.missing)
    tally.bytes_total = found.bytes_total
    tally.bytes_present = found.bytes_total - sum(file.size_bytes for file in found.missing)
    tally.bytes_fetched = tally.bytes_lost = 0


def _headers(start: int, size: int, etag: str | None) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    stop = min(size, start + SEGMENT_BYTES)
    if start or stop < size:
        headers["Range"] = f"bytes={start}-" + (str(stop - 1) if stop < size else "")
        if etag is not None and etag.startswith('"'):
            headers["If-Range"] = etag
    return headers


def _require_same(file: RemoteFile, reply: httpx2.Response) -> None:
    """Raise _NotSame when the Hub says that it resolves to another file than was listed."""
    linked = reply.headers.get("X-Linked-Etag")
    etag = (linked or "").removeprefix("W/").strip('"')
    size = reply.headers.get("X-Linked-Size", "")
    if (linked and etag != file.blob) or (size.isdecimal() and int(size) != file.size_bytes):
        raise _NotSame(file.path)


def _require_range(reply: httpx2.Response, start: int, size: int) -> None:
    told = _RANGE.fullmatch(reply.headers.get("Content-Range", ""))
    if told is None or int(told[1]) != start or told[2] not in ("*", str(size)):
        raise HubProtocolError("The Hub sends another part of the file than was asked for.")


def _wait_s(tries: int, error: HubError | None) -> float:
    if error is not None and error.retry_after_s is not None:
        return error.retry_after_s
    return float(min(2 ** (tries - 1), MAX_WAIT_S))


def _read_file(entry: _Entry) -> RemoteFile:
    lfs = entry.lfs or {}
    size, blob = lfs.get("size", entry.size), lfs.get("oid", entry.oid)
    if not isinstance(size, int) or not isinstance(blob, str) or not is_blob_name(blob):
        raise HubProtocolError("The Hub lists a file without its checksum or size.")
    return require_safe(RemoteFile(entry.path, size, blob))


def _decode(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise HubProtocolError("The Hub answered something unreadable.") from error
