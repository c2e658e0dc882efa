"""A download that runs at this gateway: what is known of it between two records in the database."""

import anyio
from msgspec.structs import replace

from gateway.core.downloads import (
    Download,
    DownloadFault,
    DownloadState,
    Fetched,
    Meter,
    Progress,
    Tally,
)
from gateway.core.ports import DownloadChange
from gateway.problems import describe


class DownloadJob:
    """Owned by the DownloadService that runs it; lives on its event loop."""

    def __init__(self, download: Download, now: float) -> None:
        """`now` is monotonic seconds."""
        self.download = download
        self.present = download
        self.tally = Tally()
        self.fetched: Fetched | None = None
        self.error: Exception | None = None
        self.scope = anyio.CancelScope()
        self.stopped = anyio.Event()
        self.is_stopping = False
        """Nobody carries it out any more, or soon."""
        self.is_over = False
        """Its end is in the database."""
        self._meter = Meter(now, download.progress)

    def stop(self) -> None:
        """Let it end soon; wait for `stopped` to know that it has."""
        self.is_stopping = True
        self.scope.cancel()

    def read(self, now: float) -> Progress:
        """Return how far it is; never less than before."""
        progress = self._meter.read(self.tally, now)
        self.present = replace(self.present, progress=progress, commit=self.commit)
        return progress

    @property
    def commit(self) -> str | None:
        return self.tally.commit or self.download.commit

    def outcome(self, now: float) -> DownloadChange | None:
        """Return the transition that its end means; None while it has none."""
        progress = replace(self.read(now), rate=None, eta_s=None)
        if self.fetched is not None:
            was_there = self.fetched.was_there
            return DownloadChange(
                DownloadState.SKIPPED if was_there else DownloadState.SUCCEEDED,
                message=self.fetched.message,
                path=self.fetched.path,
                commit=self.fetched.commit,
                progress=progress,
            )
        if self.error is None:
            return None
        problem = describe(self.error)
        fault = DownloadFault(problem.code, problem.message, problem.hint, problem.retryable)
        return DownloadChange(
            DownloadState.FAILED, error=fault, commit=self.commit, progress=progress
        )
