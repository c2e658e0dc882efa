"""Downloads as GraphQL shows them, and what is asked of them."""

from collections.abc import AsyncGenerator
from datetime import datetime
from enum import Enum
from typing import Annotated

import strawberry

from gateway.core import downloads
from gateway.core.downloads import DownloadFault, DownloadOrder, parse_order
from gateway.core.errors import ShuttingDown
from schema.context import Info
from schema.types import Long, Problem, to_datetime


@strawberry.enum(description="Where a download is.")
class DownloadState(Enum):
    QUEUED = strawberry.enum_value("QUEUED", description="It waits for its turn.")
    RUNNING = strawberry.enum_value("RUNNING", description="Files are being fetched.")
    PAUSED = strawberry.enum_value("PAUSED", description="Stopped; what was fetched is kept.")
    SUCCEEDED = strawberry.enum_value("SUCCEEDED", description="Everything is there.")
    SKIPPED = strawberry.enum_value("SKIPPED", description="Everything was there already.")
    FAILED = strawberry.enum_value("FAILED", description="See error; it can be resumed.")
    CANCELLED = strawberry.enum_value("CANCELLED", description="Stopped for good.")


@strawberry.input(description="What to download.")
class DownloadInput:
    repo: str = strawberry.field(
        description="owner/name on the Hub, or ollama/name for a model of Ollama's registry."
    )
    revision: str | None = strawberry.field(
        default=None, description="A branch, tag or commit; null: main."
    )
    patterns: list[str] = strawberry.field(
        default_factory=list, description="Only files that fit any of these, such as *.json."
    )
    force: bool = strawberry.field(default=False, description="Fetch what is there already, too.")

    def to_core(self) -> DownloadOrder:
        """Return the order; raises InvalidRequest."""
        return parse_order(
            self.repo, revision=self.revision, patterns=self.patterns, force=self.force
        )


@strawberry.type(description="A model on its way to this machine.")
class Download:
    id: strawberry.ID = strawberry.field(description="The id of the download.")
    model: str = strawberry.field(description="The full name of the model that it will be.")
    repo: str = strawberry.field(description="The repository, or Ollama's name of the model.")
    source: str = strawberry.field(description="huggingface or ollama.")
    revision: str | None = strawberry.field(description="As it was asked for.")
    patterns: list[str] = strawberry.field(description="Only files that fit any of these.")
    force: bool = strawberry.field(description="What was there is fetched, too.")
    state: DownloadState = strawberry.field(description="Where it is.")
    bytes_done: Long = strawberry.field(description="Never runs backwards.")
    bytes_total: Long | None = strawberry.field(description="Null until it is known.")
    files_done: int = strawberry.field(description="How many files are whole.")
    files_total: int | None = strawberry.field(description="Null until it is known.")
    bytes_per_second: float | None = strawberry.field(description="While it runs.")
    eta_seconds: float | None = strawberry.field(description="While it runs and is known.")
    commit: str | None = strawberry.field(description="What the revision led to.")
    path: str | None = strawberry.field(description="Where the files are, once they are there.")
    message: str | None = strawberry.field(description="How it came out.")
    error: Problem | None = strawberry.field(description="Why it failed, if it did.")
    created_at: datetime = strawberry.field(description="When it was ordered.")
    updated_at: datetime = strawberry.field(description="When it last changed.")

    @classmethod
    def of(cls, download: downloads.Download) -> "Download":
        order, progress = download.order, download.progress
        return cls(
            id=strawberry.ID(download.id),
            model=order.name,
            repo=order.repo,
            source=order.source,
            revision=order.revision,
            patterns=list(order.patterns),
            force=order.force,
            state=DownloadState[download.state.name],
            bytes_done=Long(progress.bytes_done),
            bytes_total=_long(progress.bytes_total),
            files_done=progress.files_done,
            files_total=progress.files_total,
            bytes_per_second=progress.rate,
            eta_seconds=progress.eta_s,
            commit=download.commit,
            path=download.path,
            message=download.message,
            error=None if download.error is None else _problem(download.error),
            created_at=to_datetime(download.created_at),
            updated_at=to_datetime(download.updated_at),
        )


@strawberry.type(description="A file that a download would have.")
class DownloadFile:
    path: str = strawberry.field(description="Its name in the repository.")
    size_bytes: Long = strawberry.field(description="Its size.")


@strawberry.type(description="What a download would do now; null where only doing it tells.")
class DownloadPlan:
    model: str = strawberry.field(description="The full name of the model that it will be.")
    commit: str | None = strawberry.field(description="What the revision leads to.")
    files: list[DownloadFile] = strawberry.field(description="The files that are wanted.")
    bytes_total: Long | None = strawberry.field(description="Their size.")
    bytes_to_fetch: Long | None = strawberry.field(description="What of it is not there yet.")
    free_bytes: Long | None = strawberry.field(description="What is free on the disk.")
    fits: bool | None = strawberry.field(description="Whether the disk has room for it.")
    path: str | None = strawberry.field(description="Where the files are, if all are there.")

    @classmethod
    def of(cls, plan: downloads.DownloadPlan) -> "DownloadPlan":
        return cls(
            model=plan.order.name,
            commit=plan.commit,
            files=[DownloadFile(path=f.path, size_bytes=Long(f.size_bytes)) for f in plan.files],
            bytes_total=_long(plan.bytes_total),
            bytes_to_fetch=_long(plan.bytes_to_fetch),
            free_bytes=_long(plan.free_bytes),
            fits=plan.fits,
            path=plan.path,
        )


_Id = Annotated[strawberry.ID, strawberry.argument(description="The id of the download.")]
_Input = Annotated[DownloadInput, strawberry.argument(description="What to download.")]
_States = Annotated[
    list[DownloadState] | None, strawberry.argument(description="Only those in these states.")
]
_First = Annotated[int, strawberry.argument(description="How many, newest first; up to 500.")]
_Ids = Annotated[
    list[strawberry.ID] | None,
    strawberry.argument(description="Only these; it completes when all of them have ended."),
]


async def list_downloads(
    info: Info, first: _First = 100, states: _States = None
) -> list[Download] | None:
    wanted = [downloads.DownloadState[state.name] for state in states or ()]
    found = await info.context.gateway.downloads.newest(first, wanted)
    return [Download.of(each) for each in found]


async def find_download(info: Info, id: _Id) -> Download | None:
    return Download.of(await info.context.gateway.downloads.find(id))


async def plan_download(info: Info, input: _Input) -> DownloadPlan | None:
    return DownloadPlan.of(await info.context.gateway.downloads.plan(input.to_core()))


async def start_download(info: Info, input: _Input) -> Download | None:
    _require_serving(info)
    return Download.of(await info.context.gateway.downloads.start(input.to_core()))


async def pause_download(info: Info, id: _Id) -> Download | None:
    _require_serving(info)
    return Download.of(await info.context.gateway.downloads.pause(id))


async def resume_download(info: Info, id: _Id) -> Download | None:
    _require_serving(info)
    return Download.of(await info.context.gateway.downloads.resume(id))


async def cancel_download(info: Info, id: _Id) -> Download | None:
    _require_serving(info)
    return Download.of(await info.context.gateway.downloads.cancel(id))


async def delete_download(info: Info, id: _Id) -> Download | None:
    _require_serving(info)
    return Download.of(await info.context.gateway.downloads.forget(id))


async def watch_downloads(info: Info, ids: _Ids = None) -> AsyncGenerator[Download, None]:
    async with info.context.gateway.downloads.watch(ids or ()) as changes:
        async for download in changes:
            yield Download.of(download)


def _require_serving(info: Info) -> None:
    if info.context.gateway.streams.draining:
        raise ShuttingDown("The gateway is shutting down.")


def _problem(fault: DownloadFault) -> Problem:
    return Problem(
        code=fault.code, message=fault.message, hint=fault.hint, retryable=fault.retryable
    )


def _long(value: int | None) -> Long | None:
    return None if value is None else Long(value)
