"""Downloads: where they come from, their queue, and who is told of them."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from gateway.core.downloads import (
    Download,
    DownloadFault,
    DownloadOrder,
    DownloadPlan,
    DownloadState,
    Fetched,
    Progress,
    Tally,
)
from gateway.core.leftovers import Leftover


class DownloadSource(Protocol):
    """Where models are downloaded from. Raises only `gateway.core.errors`."""

    @property
    def place(self) -> str:
        """Where its files go: gateways with the same place may go on with each other's work."""
        ...

    async def plan(self, order: DownloadOrder) -> DownloadPlan:
        """Return what `fetch` would do now, without doing it."""
        ...

    async def fetch(
        self, order: DownloadOrder, tally: Tally, *, commit: str | None, since: float
    ) -> Fetched:
        """Have the model; count in `tally` meanwhile. Being cancelled keeps what is there.

        `commit` is what an earlier run found behind the revision, `since` (Unix seconds) when it
        was ordered.
        """
        ...

    async def discard(self, order: DownloadOrder) -> None:
        """Delete what is there and belongs to no whole model, if nobody works on it."""
        ...


class LeftoverCache(Protocol):
    """The files that downloads left behind in the Hub's cache. Both methods are blocking."""

    def find(self) -> Sequence[Leftover]: ...

    def discard(self, repository: str) -> int:
        """Delete what no snapshot shows and nobody is at; return the bytes that this freed."""
        ...


class DownloadObserver(Protocol):
    """Is told when a download has succeeded: the library verifies what came. Must not block;
    raising does not change the download."""

    def __call__(self, download: Download, /) -> None: ...


class Worker(msgspec.Struct, frozen=True):
    """A gateway that takes on work: its `node`, the run of it, and how long a lease lasts."""

    node: str
    boot: str
    lease_s: float


class DownloadChange(msgspec.Struct, frozen=True):
    """A transition; what is None stays, but for `message` and `error`. `looks_up_anew`: the commit
    that was found behind the revision is forgotten."""

    state: DownloadState
    message: str | None = None
    error: DownloadFault | None = None
    path: str | None = None
    commit: str | None = None
    progress: Progress | None = None
    place: str | None = None
    looks_up_anew: bool = False


class DownloadStore(Protocol):
    """The queue of downloads. All methods raise DatabaseUnavailable when the database does not
    answer."""

    async def add(self, download: Download) -> None: ...

    async def find(self, download_id: str) -> Download | None: ...

    async def newest(self, limit: int, states: Sequence[DownloadState] = ()) -> Sequence[Download]:
        """Return the newest downloads, newest first; with `states` only those in one of them."""
        ...

    async def claim(self, worker: Worker, places: Sequence[str]) -> Download | None:
        """Return the oldest one for any of the places that nobody runs, as RUNNING by `worker`.

        What an earlier run of the same node left counts at once, others' when their lease is over.
        Such ones for other places are queued again, for whoever has those.
        """
        ...

    async def keep(
        self, download_id: str, worker: Worker, progress: Progress, commit: str | None
    ) -> bool:
        """Record progress and prolong the lease; False: the worker has it no longer."""
        ...

    async def move(
        self,
        download_id: str,
        change: DownloadChange,
        worker: Worker | None = None,
        *,
        sources: Sequence[DownloadState] = (),
    ) -> Download | None:
        """Do the transition if it is legal now; return the download after it, else None.

        With `worker` only if he still runs it, with `sources` only from one of these.
        """
        ...

    async def remove(self, download_id: str) -> bool:
        """Forget a download that has ended; return whether there was such a one."""
        ...

    async def purge(self, changed_before: float, limit: int) -> int:
        """Forget up to `limit` downloads that ended before (Unix seconds), the oldest first, and
        return how many; those that failed may be resumed, and stay."""
        ...
