"""Downloads from a Hub on loopback into a cache that the real huggingface_hub then reads."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from huggingface_hub import scan_cache_dir, snapshot_download

from gateway.core.downloads import DownloadOrder, Fetched, Tally, parse_order
from gateway.core.errors import (
    ChecksumMismatch,
    GatedRepository,
    HubProtocolError,
    HubUnavailable,
    InsufficientStorage,
    RepositoryNotFound,
    StorageFailed,
    UnsafeRepository,
)
from gateway.hub.client import HubClient
from gateway.hub.download import HubDownloads
from gateway.hub.repository import Repository
from gateway.hub.transfer import MAX_TRIES, WRITE_BYTES
from tests.integration.disks import fill_up, tiny_disk
from tests.integration.hub_peer.files import HubFile, Plan
from tests.integration.hub_peer.server import HubPeer

PATH = "model.safetensors"
WEIGHTS = random.Random(7).randbytes(1_500_000)
CONFIG = HubFile("config.json", b'{"a": 1}', lfs=False)
MODEL = "org/model"


class QuickClock:
    """A clock that a sleep turns at once."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def opened(
    hub: HubPeer,
    cache: Path,
    *,
    token: str | None = None,
    reserve_bytes: int = 0,
    clock: QuickClock | None = None,
) -> AsyncIterator[HubDownloads]:
    async def look_up() -> str | None:
        return token

    clock = clock or QuickClock()
    client = HubClient(hub.url, look_up, timeout_s=5.0, clock=clock)
    try:
        yield HubDownloads(
            client,
            cache,
            place="here",
            reserve_bytes=reserve_bytes,
            connections=2,
            clock=clock,
            sleep=clock.sleep,
        )
    finally:
        await client.aclose()


async def fetch(
    downloads: HubDownloads, tally: Tally | None = None, *, patterns: Sequence[str] = ()
) -> Fetched:
    wanted = parse_order(MODEL, patterns=patterns)
    return await downloads.fetch(wanted, tally or Tally(), commit=None, since=time.time())


def partials(cache: Path) -> list[Path]:
    return sorted(cache.glob("models--*/blobs/*.incomplete"))


def everything_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))


@pytest.fixture
def model(hub: HubPeer) -> HubPeer:
    hub.files.add(MODEL, CONFIG, HubFile(PATH, WEIGHTS), HubFile("sub/a b#?.txt", b"x", lfs=False))
    return hub


async def test_huggingface_hub_finds_what_was_downloaded(model: HubPeer, tmp_path: Path) -> None:
    tally = Tally()
    async with opened(model, tmp_path) as downloads:
        fetched = await fetch(downloads, tally=tally)
    commit = model.files.repos[MODEL].refs["main"]
    found = snapshot_download(MODEL, revision=commit, cache_dir=tmp_path, local_files_only=True)
    assert fetched == Fetched("3 files are there.", found, commit, was_there=False)
    assert (Path(found) / PATH).read_bytes() == WEIGHTS
    assert (Path(found) / "sub/a b#?.txt").read_bytes() == b"x"
    report = scan_cache_dir(tmp_path)
    assert not report.warnings
    (revision,) = next(iter(report.repos)).revisions
    assert (revision.commit_hash, revision.refs) == (commit, frozenset({"main"}))
    assert tally.bytes_done == tally.bytes_total == len(WEIGHTS) + len(CONFIG.data) + 1
    assert (tally.files_done, tally.files_total) == (3, 3)
    assert partials(tmp_path) == []


async def test_what_is_there_is_not_fetched_again(model: HubPeer, tmp_path: Path) -> None:
    async with opened(model, tmp_path) as downloads:
        first = await fetch(downloads)
        asked = len(model.seen(path="resolve"))
        again = await fetch(downloads)
        plan = await downloads.plan(parse_order(MODEL))
    assert (again.path, again.was_there) == (first.path, True)
    assert len(model.seen(path="resolve")) == asked
    assert (plan.bytes_to_fetch, plan.path) == (0, first.path)


async def test_force_fetches_everything_again_but_once(model: HubPeer, tmp_path: Path) -> None:
    async with opened(model, tmp_path) as downloads:
        await fetch(downloads)
        ordered_at = time.time()
        order = parse_order(MODEL, force=True)
        for _ in range(2):
            await downloads.fetch(order, Tally(), commit=None, since=ordered_at)
    assert [seen.sent_bytes for seen in model.seen("cdn")] == [len(WEIGHTS)] * 2


async def test_only_files_that_a_pattern_fits_are_fetched(model: HubPeer, tmp_path: Path) -> None:
    async with opened(model, tmp_path) as downloads:
        fetched = await fetch(downloads, patterns=["*.json", "sub/"])
        assert fetched.path is not None
        names = {path.name for path in everything_in(Path(fetched.path)) if path.is_file()}
        assert names == {"config.json", "a b#?.txt"}
        whole = await fetch(downloads)  # adds to the snapshot what it lacks
        assert whole.path == fetched.path and not whole.was_there
        assert (Path(fetched.path) / PATH).read_bytes() == WEIGHTS
        with pytest.raises(RepositoryNotFound) as refused:
            await fetch(downloads, patterns=["*.gguf"])
        assert refused.value.hint is not None and f"hub show {MODEL}" in refused.value.hint
        with pytest.raises(RepositoryNotFound) as refused:
            await downloads.plan(parse_order(MODEL, revision="v9"))
        assert refused.value.hint is not None and "branches" in refused.value.hint
        assert (await fetch(downloads, patterns=["*.json"])).was_there


async def test_a_plan_writes_nothing(model: HubPeer, tmp_path: Path) -> None:
    cache = tmp_path / "not" / "there"
    async with opened(model, cache) as downloads:
        plan = await downloads.plan(parse_order(MODEL))
    assert plan.bytes_to_fetch == plan.bytes_total == len(WEIGHTS) + len(CONFIG.data) + 1
    assert plan.fits and plan.free_bytes and plan.path is None
    assert not (tmp_path / "not").exists()


async def test_a_cut_goes_on_where_it_ended(model: HubPeer, tmp_path: Path) -> None:
    model.files.plan(PATH, Plan(cut_after=700_001), Plan(cut_after=1), Plan(cut_after=500_000))
    async with opened(model, tmp_path) as downloads:
        fetched = await fetch(downloads, patterns=[PATH])
    assert fetched.path is not None
    assert (Path(fetched.path) / PATH).read_bytes() == WEIGHTS
    ranges = [seen.headers.get("range") for seen in model.seen("cdn")]
    assert ranges == [None, "bytes=700001-", "bytes=700002-", "bytes=1200002-"]
    assert sum(seen.sent_bytes for seen in model.seen("cdn")) == len(WEIGHTS)
    assert model.seen("cdn")[1].headers["if-range"] == f'"{HubFile(PATH, WEIGHTS).etag}"'


async def test_five_hundred_cuts_lose_nothing(hub: HubPeer, tmp_path: Path) -> None:
    chosen = random.Random(1)
    sizes = [chosen.randrange(1, 200_000) for _ in range(100)]
    files = [HubFile(f"{n}.bin", chosen.randbytes(size)) for n, size in enumerate(sizes)]
    hub.files.add(MODEL, *files)
    for file in files:
        cuts = [Plan(cut_after=chosen.randrange(1, len(file.data) // 5 + 2)) for _ in range(5)]
        hub.files.plan(file.path, *cuts)
    async with opened(hub, tmp_path) as downloads:
        fetched = await fetch(downloads)
    assert fetched.path is not None
    for file in files:
        assert (Path(fetched.path) / file.path).read_bytes() == file.data
    answers = hub.seen("cdn")
    assert len(answers) > 550  # nearly every planned cut was made
    assert sum(seen.sent_bytes for seen in answers) <= 1.01 * sum(sizes)


async def test_a_later_run_goes_on_with_what_a_cancelled_one_left(
    model: HubPeer, tmp_path: Path
) -> None:
    model.files.plan(PATH, Plan(hold_after=1_300_000, hold=asyncio.Event()))
    async with opened(model, tmp_path) as downloads:
        async with anyio.create_task_group() as tasks:
            before = Tally()
            tasks.start_soon(partial(fetch, downloads, before, patterns=[PATH]))
            while before.bytes_done < WRITE_BYTES:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        (left,) = partials(tmp_path)
        kept = left.stat().st_size
        assert left.read_bytes() == WEIGHTS[:kept]
        tally = Tally()
        fetched = await fetch(downloads, tally=tally)
    assert fetched.path is not None and (Path(fetched.path) / PATH).read_bytes() == WEIGHTS
    assert kept >= WRITE_BYTES and model.seen("cdn")[-1].headers["range"] == f"bytes={kept}-"
    assert tally.bytes_done == tally.bytes_total


@pytest.mark.parametrize("left", [b"not what it was", WEIGHTS + b"too long", b""])
async def test_a_partial_file_of_something_else_is_found_out(
    model: HubPeer, tmp_path: Path, left: bytes
) -> None:
    blobs = tmp_path / "models--org--model/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{HubFile(PATH, WEIGHTS).etag}.incomplete").write_bytes(left)
    async with opened(model, tmp_path) as downloads:
        fetched = await fetch(downloads)
    assert fetched.path is not None and (Path(fetched.path) / PATH).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "plan",
    [
        Plan(data=WEIGHTS[:-1] + b"?"),
        Plan(data=b"\0" * len(WEIGHTS), etag="other"),
    ],
)
async def test_what_is_not_what_the_hub_said_is_never_published(
    model: HubPeer, tmp_path: Path, plan: Plan
) -> None:
    model.files.always(PATH, plan)
    async with opened(model, tmp_path) as downloads:
        with pytest.raises(ChecksumMismatch):
            await fetch(downloads, patterns=[PATH])
    assert not (tmp_path / "models--org--model/snapshots").exists()
    assert partials(tmp_path) == []


async def test_a_file_that_changed_at_the_second_host_is_begun_anew(
    model: HubPeer, tmp_path: Path
) -> None:
    """The first answer is of another file, with an ETag of its own; then the right one."""
    other = random.Random(3).randbytes(len(WEIGHTS))
    model.files.plan(PATH, Plan(data=other, etag="old", cut_after=400_000))
    async with opened(model, tmp_path) as downloads:
        fetched = await fetch(downloads)
    assert fetched.path is not None and (Path(fetched.path) / PATH).read_bytes() == WEIGHTS
    again = model.seen("cdn")[1]
    assert (again.headers["if-range"], again.status) == ('"old"', 200)


async def test_a_branch_that_was_rewritten_meanwhile_is_looked_at_again(
    model: HubPeer, tmp_path: Path
) -> None:
    repo = model.files.repos[MODEL]
    old = repo.refs["main"]
    new = repo.commit(HubFile(PATH, b"new weights"))
    # The list of files is of the old commit, the bytes behind its name are of the new one.
    listed = dict(repo.commits[old])
    repo.commits[old] = {**listed, PATH: HubFile(PATH, b"new weights")}
    repo.trees[old] = listed
    async with opened(model, tmp_path) as downloads:
        fetched = await downloads.fetch(parse_order(MODEL), Tally(), commit=old, since=0.0)
    assert fetched.commit == new
    assert fetched.path is not None and (Path(fetched.path) / PATH).read_bytes() == b"new weights"


@pytest.mark.parametrize(
    "plan",
    [
        Plan(ranges=False),
        Plan(range_shift=1),
        Plan(status=503),
        Plan(status=403),
        Plan(status=429, headers=[("Retry-After", "7")]),
        Plan(encoding="gzip"),
        Plan(reset=True, cut_after=10),
    ],
)
async def test_an_odd_answer_costs_a_request_and_nothing_else(
    model: HubPeer, tmp_path: Path, plan: Plan
) -> None:
    model.files.plan(PATH, Plan(cut_after=700_000), plan)
    async with opened(model, tmp_path) as downloads:
        fetched = await fetch(downloads)
    assert fetched.path is not None and (Path(fetched.path) / PATH).read_bytes() == WEIGHTS


async def test_another_part_than_was_asked_for_is_not_written(
    model: HubPeer, tmp_path: Path
) -> None:
    model.files.plan(PATH, Plan(cut_after=700_000), Plan(range_shift=1))
    async with opened(model, tmp_path) as downloads:
        await fetch(downloads, patterns=[PATH])
    asked = [seen.headers.get("range") for seen in model.seen("cdn")]
    assert asked == [None, "bytes=700000-", "bytes=700000-"]


async def test_a_hub_that_goes_on_failing_is_given_up(model: HubPeer, tmp_path: Path) -> None:
    model.files.always(PATH, Plan(status=503))
    async with opened(model, tmp_path) as downloads:
        with pytest.raises(HubUnavailable):
            await fetch(downloads, patterns=[PATH])
    assert len(model.seen("cdn")) == MAX_TRIES


async def test_a_lying_size_is_refused(hub: HubPeer, tmp_path: Path) -> None:
    hub.files.add(MODEL, HubFile(PATH, WEIGHTS, declared_size=len(WEIGHTS) + 1))
    async with opened(hub, tmp_path) as downloads:
        with pytest.raises(HubProtocolError):
            await fetch(downloads)
    assert not (tmp_path / "models--org--model/snapshots").exists()


async def test_the_token_stays_at_the_hub(model: HubPeer, tmp_path: Path) -> None:
    repo = model.files.repos[MODEL]
    repo.gated, repo.granted = True, {"hf_canary"}
    model.tokens["hf_canary"] = "user"
    async with opened(model, tmp_path) as downloads:
        with pytest.raises(GatedRepository):
            await fetch(downloads)
    async with opened(model, tmp_path, token="hf_canary") as downloads:
        await fetch(downloads)
    assert {seen.token for seen in model.seen("hub", path="resolve")} == {None, "hf_canary"}
    assert model.seen("cdn")
    assert "hf_canary" not in str([seen.headers for seen in model.seen("cdn")])
    for path in everything_in(tmp_path):
        assert not path.is_file() or b"hf_canary" not in path.read_bytes()


async def test_two_at_once_fetch_a_file_once(model: HubPeer, tmp_path: Path) -> None:
    async with (
        opened(model, tmp_path) as one,
        opened(model, tmp_path) as other,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(fetch, one)
        tasks.start_soon(fetch, other)
    assert [seen.sent_bytes for seen in model.seen("cdn")] == [len(WEIGHTS)]


async def test_what_does_not_fit_is_refused_before_it_is_begun(
    model: HubPeer, tmp_path: Path
) -> None:
    async with opened(model, tmp_path, reserve_bytes=2**62) as downloads:
        plan = await downloads.plan(parse_order(MODEL))
        assert plan.fits is False
        with pytest.raises(InsufficientStorage):
            await fetch(downloads)
    assert model.seen("cdn") == []


HOSTILE_PATHS = [
    "../outside",
    "a/../../outside",
    "/outside",
    "a//b",
    "./a",
    "a\\..\\b",
    "a\x00b",
    "a\nb",
    "x" * 300,
    "",
    "..",
    "a/" * 600 + "b",
]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
async def test_a_file_name_that_leads_out_is_refused(
    hub: HubPeer, tmp_path: Path, path: str
) -> None:
    cache = tmp_path / "cache"
    hub.files.add(MODEL, CONFIG, HubFile(path, b"evil", lfs=False))
    async with opened(hub, cache) as downloads:
        with pytest.raises(UnsafeRepository):
            await fetch(downloads)
    assert not cache.exists() and everything_in(tmp_path) == []


@pytest.mark.parametrize("folder", ["", "blobs", "snapshots", "refs"])
async def test_a_planted_link_in_place_of_a_folder_is_not_followed(
    model: HubPeer, tmp_path: Path, folder: str
) -> None:
    cache, outside = tmp_path / "cache", tmp_path / "outside"
    outside.mkdir()
    planted = cache / "models--org--model" / folder
    planted.parent.mkdir(parents=True)
    (planted if folder else cache / "models--org--model").symlink_to(outside)
    async with opened(model, cache) as downloads:
        with pytest.raises(StorageFailed):
            await fetch(downloads)
    assert everything_in(outside) == []


@pytest.mark.parametrize("kind", ["link", "fifo", "hard link", "folder"])
async def test_a_planted_partial_file_is_not_written(
    model: HubPeer, tmp_path: Path, kind: str
) -> None:
    cache, outside = tmp_path / "cache", tmp_path / "outside"
    outside.write_bytes(b"precious")
    blobs = cache / "models--org--model/blobs"
    blobs.mkdir(parents=True)
    planted = blobs / f"{HubFile(PATH, WEIGHTS).etag}.incomplete"
    match kind:
        case "link":
            planted.symlink_to(outside)
        case "fifo":
            os.mkfifo(planted)
        case "hard link":
            planted.hardlink_to(outside)
        case "folder":
            planted.mkdir()
    async with opened(model, cache) as downloads:
        with pytest.raises(StorageFailed):
            await fetch(downloads)
    assert outside.read_bytes() == b"precious"
    assert not (cache / "models--org--model/snapshots").exists()


async def test_a_planted_blob_that_leads_out_does_not_count(model: HubPeer, tmp_path: Path) -> None:
    cache, outside = tmp_path / "cache", tmp_path / "outside"
    outside.write_bytes(b"\0" * len(WEIGHTS))
    blob = cache / "models--org--model/blobs" / HubFile(PATH, WEIGHTS).etag
    blob.parent.mkdir(parents=True)
    blob.symlink_to(outside)
    async with opened(model, cache) as downloads:
        fetched = await fetch(downloads)
    assert fetched.path is not None and (Path(fetched.path) / PATH).read_bytes() == WEIGHTS
    assert outside.read_bytes() == b"\0" * len(WEIGHTS)


async def test_discarding_leaves_what_others_write(model: HubPeer, tmp_path: Path) -> None:
    model.files.plan(PATH, Plan(hold_after=1_300_000, hold=asyncio.Event()))
    order = DownloadOrder("huggingface", MODEL)
    async with opened(model, tmp_path) as downloads, anyio.create_task_group() as tasks:
        tally = Tally()
        tasks.start_soon(partial(fetch, downloads, tally, patterns=[PATH]))
        while tally.bytes_done < WRITE_BYTES:
            await anyio.lowlevel.checkpoint()
        await downloads.discard(order)
        assert len(partials(tmp_path)) == 1
        tasks.cancel_scope.cancel()
    assert len(partials(tmp_path)) == 1
    async with opened(model, tmp_path) as downloads:
        await downloads.discard(order)
        assert not (tmp_path / "models--org--model").exists()
        await downloads.discard(order)
    assert partials(tmp_path) == []


async def test_discarding_takes_whole_files_that_no_snapshot_shows(
    model: HubPeer, tmp_path: Path
) -> None:
    blobs = tmp_path / "models--org--model/blobs"
    async with opened(model, tmp_path) as downloads:
        await fetch(downloads, patterns=["*.json"])
        shown = set(blobs.iterdir())
        model.files.plan(PATH, *[Plan(status=503)] * MAX_TRIES)
        with pytest.raises(HubUnavailable):
            await fetch(downloads)
        assert len(set(blobs.iterdir())) > len(shown)
        at_work = Repository(tmp_path, MODEL)
        await downloads.discard(DownloadOrder("huggingface", MODEL))
        assert len(set(blobs.iterdir())) > len(shown)  # who is at work may be about to show them
        at_work.close()
        await downloads.discard(DownloadOrder("huggingface", MODEL))
        assert set(blobs.iterdir()) == shown


async def test_the_folders_of_one_who_works_stay(model: HubPeer, tmp_path: Path) -> None:
    """Who ordered it anew may have opened them before the first file is there."""
    order = DownloadOrder("huggingface", MODEL)
    async with opened(model, tmp_path) as downloads:
        at_work = Repository(tmp_path, MODEL)
        await downloads.discard(order)
        assert (tmp_path / "models--org--model/blobs").is_dir()
        at_work.close()
        await downloads.discard(order)
        assert not (tmp_path / "models--org--model").exists()


@pytest.mark.parametrize("reserve_bytes", [0, 2**20])
async def test_a_disk_that_fills_up_leaves_what_was_fetched_as_it_is(
    model: HubPeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reserve_bytes: int
) -> None:
    """Full in the middle of a write, and found too full after one: neither writes twice."""
    monkeypatch.setattr("gateway.hub.transfer.WRITE_BYTES", 100_000)
    monkeypatch.setattr("gateway.hub.transfer.LOOK_AT_DISK_BYTES", 1)
    go_on = asyncio.Event()
    model.files.plan(PATH, Plan(hold_after=500_000, hold=go_on))
    with tiny_disk(tmp_path / "disk", "4m") as cache:
        async with opened(model, cache, reserve_bytes=reserve_bytes) as downloads:
            tally = Tally()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_fail_to_fetch, downloads, tally)
                while tally.bytes_done < 400_000:
                    await anyio.lowlevel.checkpoint()
                ballast = fill_up(cache)
                os.truncate(ballast, ballast.stat().st_size - 150_000)
                go_on.set()
        (left,) = partials(cache)
        assert left.read_bytes() == WEIGHTS[: left.stat().st_size]
        assert left.stat().st_size >= 400_000


async def _fail_to_fetch(downloads: HubDownloads, tally: Tally) -> None:
    with pytest.raises(InsufficientStorage):
        await fetch(downloads, tally, patterns=[PATH])


async def test_what_is_removed_before_it_is_published_is_fetched_again(
    model: HubPeer, tmp_path: Path
) -> None:
    """As a removal of an older revision does that had the same file."""
    go_on = asyncio.Event()
    model.files.plan(PATH, Plan(hold_after=1_300_000, hold=go_on))
    tally = Tally()
    async with opened(model, tmp_path) as downloads, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(fetch, downloads, tally))
        while tally.files_done < 2 or tally.bytes_done < WRITE_BYTES:
            await anyio.lowlevel.checkpoint()
        (tmp_path / "models--org--model/blobs" / CONFIG.etag).unlink()
        go_on.set()
    commit = model.files.repos[MODEL].refs["main"]
    found = snapshot_download(MODEL, revision=commit, cache_dir=tmp_path, local_files_only=True)
    assert (Path(found) / CONFIG.path).read_bytes() == CONFIG.data
    assert (tally.files_done, tally.bytes_done) == (3, tally.bytes_total)


async def test_a_host_that_sends_little_and_cuts_is_not_asked_again_at_once(
    model: HubPeer, tmp_path: Path
) -> None:
    model.files.plan(PATH, *[Plan(cut_after=10)] * 8, Plan(cut_after=WRITE_BYTES))
    clock = QuickClock()
    async with opened(model, tmp_path, clock=clock) as downloads:
        await fetch(downloads, patterns=[PATH])
    assert clock.slept == [1.0] * 8  # the last cut came after much: it goes on at once
