"""Downloads: what is asked for, the states they go through, progress and the file names of a
repository. Pure: fetches nothing."""

import math
import re
from collections.abc import Sequence
from enum import StrEnum
from fnmatch import fnmatchcase

import msgspec

from gateway.core.errors import InvalidRequest, UnsafeRepository
from gateway.core.names import normalise_ollama_name, require_repository

MAX_PATTERNS = 32
MAX_PATTERN_LENGTH = 200
MAX_FILES = 20_000
MAX_FILE_BYTES = 2**53
"""Beyond it a JSON number is no longer exact for JavaScript; no file is as large."""
LEAST_SPAN_S = 0.1
RATE_SPAN_S = 5.0
"""How long ago a change of speed counts for a third."""

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class DownloadState(StrEnum):
    """Where a download is. FAILED can be resumed; SKIPPED: all of it was there already."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    SKIPPED = "SKIPPED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ACTIVE = (DownloadState.QUEUED, DownloadState.RUNNING, DownloadState.PAUSED)
"""Those that somebody still wants."""

ENDED = frozenset(
    {
        DownloadState.SUCCEEDED,
        DownloadState.SKIPPED,
        DownloadState.FAILED,
        DownloadState.CANCELLED,
    }
)

SETTLED = ENDED - {DownloadState.FAILED}
"""From these nothing leads on."""

LEGAL_SOURCES: dict[DownloadState, frozenset[DownloadState]] = {
    # A gateway that stops gives back what it runs; one that waits may change its place.
    DownloadState.QUEUED: frozenset(
        {
            DownloadState.QUEUED,
            DownloadState.RUNNING,
            DownloadState.PAUSED,
            DownloadState.FAILED,
        }
    ),
    # From RUNNING when the lease of who ran it is over.
    DownloadState.RUNNING: frozenset({DownloadState.QUEUED, DownloadState.RUNNING}),
    DownloadState.PAUSED: frozenset({DownloadState.QUEUED, DownloadState.RUNNING}),
    DownloadState.SUCCEEDED: frozenset({DownloadState.RUNNING}),
    DownloadState.SKIPPED: frozenset({DownloadState.RUNNING}),
    DownloadState.FAILED: frozenset({DownloadState.RUNNING}),
    DownloadState.CANCELLED: frozenset(
        {
            DownloadState.QUEUED,
            DownloadState.RUNNING,
            DownloadState.PAUSED,
            DownloadState.FAILED,
        }
    ),
}
"""For each state, the states it may be entered from."""


class DownloadOrder(msgspec.Struct, frozen=True):
    """What to download from where: `source` is huggingface or ollama. Without patterns all of it;
    `force` fetches what is there already, too."""

    source: str
    repo: str
    revision: str | None = None
    patterns: tuple[str, ...] = ()
    force: bool = False

    @property
    def name(self) -> str:
        """The full name of the model that it will be."""
        return f"{self.source}/{self.repo}" + (f"@{self.revision}" if self.revision else "")


class DownloadFault(msgspec.Struct, frozen=True):
    """Why a download failed, as a user is told."""

    code: str
    message: str
    hint: str | None = None
    retryable: bool = False


class Progress(msgspec.Struct, frozen=True):
    """How far it is; totals are None while they are not known. `rate` is bytes a second."""

    bytes_done: int = 0
    bytes_total: int | None = None
    files_done: int = 0
    files_total: int | None = None
    rate: float | None = None
    eta_s: float | None = None


class Download(msgspec.Struct, frozen=True):
    """One download as it is now; times are Unix seconds. `place` names where its files go."""

    id: str
    order: DownloadOrder
    place: str
    state: DownloadState
    created_at: float
    updated_at: float
    progress: Progress = Progress()
    commit: str | None = None
    path: str | None = None
    message: str | None = None
    error: DownloadFault | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def waits_elsewhere(self, place: str) -> bool:
        """Tell whether it waits for a gateway of another place than this."""
        return self.state is DownloadState.QUEUED and self.place != place


class RemoteFile(msgspec.Struct, frozen=True):
    """A file of a repository. `blob` is what the Hub's cache names it by: its SHA-256, or Git's
    name of it where it is not in LFS."""

    path: str
    size_bytes: int
    blob: str

    @property
    def is_lfs(self) -> bool:
        return len(self.blob) == 64


class DownloadPlan(msgspec.Struct, frozen=True):
    """What a download would do now; None is unknown before it runs."""

    order: DownloadOrder
    commit: str | None = None
    files: tuple[RemoteFile, ...] = ()
    bytes_total: int | None = None
    bytes_to_fetch: int | None = None
    free_bytes: int | None = None
    fits: bool | None = None
    path: str | None = None


class Fetched(msgspec.Struct, frozen=True):
    """How a download came out; `was_there`: nothing had to be fetched."""

    message: str
    path: str | None = None
    commit: str | None = None
    was_there: bool = False


class Tally:
    """What a source has counted so far of one download; written by the source, on the loop.

    `bytes_lost` were counted, and turned out to be wrong.
    """

    def __init__(self) -> None:
        self.commit: str | None = None
        self.bytes_total: int | None = None
        self.bytes_present = 0
        self.bytes_fetched = 0
        self.bytes_lost = 0
        self.files_total: int | None = None
        self.files_done = 0

    @property
    def bytes_done(self) -> int:
        return self.bytes_present + self.bytes_fetched - self.bytes_lost


class Meter:
    """Turns tallies into progress that never runs backwards, with a smoothed rate."""

    def __init__(self, now: float, shown: Progress) -> None:
        """`now` is monotonic seconds; `shown` is what an earlier run told last."""
        self._at = now
        self._received = 0
        self._rate: float | None = None
        self._shown = shown

    def read(self, tally: Tally, now: float) -> Progress:
        """Return the progress at `now`. Bytes that have to be fetched again do not count back."""
        self._measure(tally.bytes_fetched, now)
        total = tally.bytes_total if tally.bytes_total is not None else self._shown.bytes_total
        done = max(tally.bytes_done, self._shown.bytes_done)
        if total is not None and tally.bytes_total is not None:
            done = max(min(done, total), self._shown.bytes_done)
            total = max(total, done)
        left = None if total is None else total - tally.bytes_done
        is_known = self._rate is not None and self._rate > 0 and left is not None
        self._shown = Progress(
            bytes_done=done,
            bytes_total=total,
            files_done=max(tally.files_done, self._shown.files_done),
            files_total=tally.files_total or self._shown.files_total,
            rate=self._rate,
            eta_s=max(0.0, left / self._rate) if is_known and left and self._rate else None,
        )
        return self._shown

    def _measure(self, fetched: int, now: float) -> None:
        span_s = now - self._at
        if span_s < LEAST_SPAN_S:
            return
        rate = max(0, fetched - self._received) / span_s
        weight = 1.0 if self._rate is None else 1 - math.exp(-span_s / RATE_SPAN_S)
        before = self._rate or 0.0
        self._rate = before + weight * (rate - before)
        self._at, self._received = now, fetched


def parse_order(
    name: str,
    *,
    revision: str | None = None,
    patterns: Sequence[str] = (),
    force: bool = False,
) -> DownloadOrder:
    """Return what `name` means: `owner/name` on the Hub, also `huggingface/owner/name` and with
    `@revision`; `ollama/name` at the Ollama server.

    Raises InvalidRequest for anything that could not be a name, a revision or a pattern.
    """
    first, _, rest = name.partition("/")
    if first == "ollama":
        if revision or patterns:
            raise InvalidRequest("An Ollama model has neither revisions nor patterns.")
        return DownloadOrder("ollama", normalise_ollama_name(rest), force=force)
    repo = rest if first == "huggingface" and "/" in rest else name
    repo, _, pinned = repo.partition("@")
    if pinned and revision and pinned != revision:
        raise InvalidRequest("The name and 'revision' name two revisions.", param="revision")
    return DownloadOrder(
        "huggingface",
        require_repository(repo, "repo"),
        _require_revision(revision or pinned or None),
        _require_patterns(patterns),
        force,
    )


def choose_files(files: Sequence[RemoteFile], patterns: Sequence[str]) -> tuple[RemoteFile, ...]:
    """Return the files that fit any of the patterns, as huggingface_hub reads them: `*` matches
    across folders, and a pattern that ends in `/` is the whole folder."""
    wanted = [f"{pattern}*" if pattern.endswith("/") else pattern for pattern in patterns]
    if not wanted:
        return tuple(files)
    return tuple(file for file in files if any(fnmatchcase(file.path, w) for w in wanted))


def require_safe(file: RemoteFile) -> RemoteFile:
    """Return the file; raise UnsafeRepository when its name or size could do harm here."""
    parts = file.path.split("/")
    is_safe = (
        file.path.isprintable()
        and "\\" not in file.path
        and len(file.path) <= 1024
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    )
    if not is_safe:
        raise UnsafeRepository(f"The repository names a file {file.path[:200]!r}.")
    if not 0 <= file.size_bytes <= MAX_FILE_BYTES:
        raise UnsafeRepository(f"The file {file.path!r} claims {file.size_bytes} bytes.")
    return file


def is_commit(text: str) -> bool:
    return _COMMIT.fullmatch(text) is not None


def is_blob_name(text: str) -> bool:
    """Tell whether it is a SHA-1 or a SHA-256 in hexadecimal."""
    return re.fullmatch(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", text) is not None


def _require_revision(revision: str | None) -> str | None:
    if revision is None:
        return None
    parts = revision.split("/")
    if not _REVISION.fullmatch(revision) or ".." in revision or "" in parts or "." in parts:
        raise InvalidRequest(f"{revision[:200]!r} is not a revision.", param="revision")
    return revision


def _require_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    if len(patterns) > MAX_PATTERNS:
        raise InvalidRequest(f"There are more than {MAX_PATTERNS} patterns.", param="patterns")
    for pattern in patterns:
        # Each * may be tried at every place: a bound, so that no pattern takes the loop's time.
        is_plain = 0 < len(pattern) <= MAX_PATTERN_LENGTH and pattern.isprintable()
        if not is_plain or pattern.count("*") > 4:
            raise InvalidRequest(f"{pattern[:200]!r} is not a pattern.", param="patterns")
    return tuple(patterns)
