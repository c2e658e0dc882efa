"""The bytes of one file: asked for from where they stop, checked, written, made a blob.

Its own ranged reads instead of huggingface_hub's: that keeps no partial files (ADR 15). The disk
is for `repository`, the token and where it may go for `client`.
"""

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urljoin

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx2
import msgspec

from gateway.core.downloads import DownloadOrder, RemoteFile, Tally
from gateway.core.errors import (
    ChecksumMismatch,
    HubError,
    HubProtocolError,
    HubRateLimited,
    HubUnavailable,
    InsufficientStorage,
)
from gateway.hub.client import origin_of
from gateway.hub.repository import Partial, Repository

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
MAX_WAIT_S = 30
_BEYOND_END = frozenset({416})
_RETRIED = _BEYOND_END | {401, 403, 404, 408, 410, 500, 502, 503, 504}
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

T = TypeVar("T")


class Bytes(Protocol):
    """What is needed of `hub.client.HubClient`."""

    def stream(
        self,
        method: str,
        path: str,
        *,
        headers: Any = None,
        follow: bool = True,
        accept: frozenset[int] = frozenset(),
    ) -> Any: ...


class NotSame(Exception):
    """The Hub offers another file under this name than it listed."""


class Job(msgspec.Struct, frozen=True):
    """One run of a download; blobs must be `newer_than` that time to count as fetched."""

    repository: Repository
    order: DownloadOrder
    commit: str
    newer_than: float | None
    tally: Tally


class _Source:
    """What is known of the host that a file comes from."""

    etag: str | None = None


class Transfer:
    """Fetches files of any job. Stops when less than `reserve_bytes` of the disk are left."""

    def __init__(
        self,
        hub: Bytes,
        threads: anyio.CapacityLimiter,
        *,
        reserve_bytes: int,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """`clock` is monotonic seconds; what blocks is done in `threads`."""
        self._hub = hub
        self._threads = threads
        self._reserve_bytes = reserve_bytes
        self._clock = clock
        self._sleep = sleep

    async def complete(self, job: Job, file: RemoteFile) -> None:
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

    async def _receive_all(self, job: Job, file: RemoteFile, part: Partial) -> None:
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

    async def _receive(self, job: Job, file: RemoteFile, part: Partial, source: _Source) -> None:
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
        job: Job,
        file: RemoteFile,
        part: Partial,
        reply: httpx2.Response,
        source: _Source,
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

    async def _write(self, job: Job, part: Partial, data: bytearray) -> None:
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

    async def _restart(self, job: Job, part: Partial) -> None:
        job.tally.bytes_lost += part.length
        await self._in_thread(part.restart)

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        return await anyio.to_thread.run_sync(partial(call, *arguments), limiter=self._threads)


def _headers(start: int, size: int, etag: str | None) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    stop = min(size, start + SEGMENT_BYTES)
    if start or stop < size:
        headers["Range"] = f"bytes={start}-" + (str(stop - 1) if stop < size else "")
        if etag is not None and etag.startswith('"'):
            headers["If-Range"] = etag
    return headers


def _require_same(file: RemoteFile, reply: httpx2.Response) -> None:
    """Raise NotSame when the Hub says that it resolves to another file than was listed."""
    linked = reply.headers.get("X-Linked-Etag")
    etag = (linked or "").removeprefix("W/").strip('"')
    size = reply.headers.get("X-Linked-Size", "")
    if (linked and etag != file.blob) or (size.isdecimal() and int(size) != file.size_bytes):
        raise NotSame(file.path)


def _require_range(reply: httpx2.Response, start: int, size: int) -> None:
    told = _RANGE.fullmatch(reply.headers.get("Content-Range", ""))
    if told is None or int(told[1]) != start or told[2] not in ("*", str(size)):
        raise HubProtocolError("The Hub sends another part of the file than was asked for.")


def _wait_s(tries: int, error: HubError | None) -> float:
    if error is not None and error.retry_after_s is not None:
        return error.retry_after_s
    return float(min(2 ** (tries - 1), MAX_WAIT_S))
