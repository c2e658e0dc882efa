"""The journal on a real disk: order, torn ends, bounds, and a disk that is full or broken."""

import errno
import os
import resource
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from gateway.core.events import Timings, Usage
from gateway.core.ports import SessionJournal
from gateway.core.sessions import SessionClosed, SessionOpened, SessionRecord
from gateway.core.states import StreamEnd
from gateway.store.journal import FileJournal
from gateway.testing import MemoryJournal
from tests.integration.disks import tiny_disk


def opened(name: str, **values: str) -> SessionOpened:
    return SessionOpened(name, "r", "n", "m", 1.5, boot="b", **values)


def closed(name: str) -> SessionClosed:
    return SessionClosed(name, "p", "m", StreamEnd.STOP, 2.5, Usage(3, 4), Timings(ttft_ms=5.0))


def some(count: int, start: int = 0) -> list[SessionRecord]:
    return [opened(f"s{number:06}") for number in range(start, start + count)]


async def read_all(journal: SessionJournal, limit: int = 7) -> list[SessionRecord]:
    found: list[SessionRecord] = []
    while journal.backlog:
        found += await journal.read(limit)
        await journal.release()
    return found


async def reopened(folder: Path, **limits: int) -> FileJournal:
    journal = FileJournal(folder, **{"max_bytes": 2**20, **limits})
    await journal.open()
    return journal


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.fixture(params=["memory", "file"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> SessionJournal:
    if request.param == "memory":
        return MemoryJournal()
    return FileJournal(tmp_path / "journal", max_bytes=2**20, segment_bytes=500)


async def test_records_come_out_in_order_as_they_went_in(journal: SessionJournal) -> None:
    assert not journal.backlog
    for start in range(0, 30, 3):
        await journal.append([*some(2, start), closed(f"s{start:06}")])
    assert journal.backlog and journal.size_bytes > 0
    expected = [r for s in range(0, 30, 3) for r in [*some(2, s), closed(f"s{s:06}")]]
    assert await read_all(journal) == expected
    assert not journal.backlog and journal.size_bytes == 0


async def test_what_is_not_released_is_read_again(journal: SessionJournal) -> None:
    await journal.append(some(5))
    assert await journal.read(2) == some(2)
    assert await journal.read(3) == some(3)
    await journal.release()
    assert await journal.read(9) == some(2, 3)


async def test_appends_and_reads_go_on_at_once(journal: SessionJournal) -> None:
    async def write() -> None:
        for start in range(0, 200, 5):
            await journal.append(some(5, start))

    found: list[SessionRecord] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        while len(found) < 200:
            found += await read_all(journal, limit=3)
            await anyio.lowlevel.checkpoint()
    assert found == some(200)


async def test_the_next_process_reads_what_was_not_released(tmp_path: Path) -> None:
    journal = await reopened(tmp_path, segment_bytes=500)
    await journal.append(some(10))
    await journal.append(some(10, 10))
    await journal.read(10)
    await journal.release()
    again = await reopened(tmp_path, segment_bytes=500)
    await again.append(some(5, 20))
    found = await read_all(again)
    assert found == some(15, 10)
    assert files(tmp_path) == []


async def test_every_torn_end_is_tolerated_and_whole_records_are_kept(tmp_path: Path) -> None:
    journal = await reopened(tmp_path / "whole")
    await journal.append(some(3))
    [file] = files(tmp_path / "whole")
    data = file.read_bytes()
    frame = len(data) // 3
    for length in range(len(data)):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / file.name).write_bytes(data[:length])
        torn = await reopened(folder)
        await torn.append([closed("after")])
        assert await read_all(torn) == [*some(length // frame), closed("after")]
        assert files(folder) == []


async def test_a_flipped_bit_ends_its_segment_and_no_other(tmp_path: Path) -> None:
    journal = await reopened(tmp_path, segment_bytes=1)  # one append, one segment
    await journal.append(some(3))
    await journal.append(some(3, 3))
    first = files(tmp_path)[0]
    data = bytearray(first.read_bytes())
    for place in range(len(data) // 3, len(data) * 2 // 3, 7):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        first.write_bytes(damaged)
        again = await reopened(tmp_path)
        assert await again.read(9) == some(1)
        await again.release()
        assert await again.read(9) == some(3, 3)


async def test_a_record_of_another_version_is_passed_over(tmp_path: Path) -> None:
    journal = await reopened(tmp_path)
    await journal.append(some(1))
    [file] = files(tmp_path)
    payload = b"\x81\xa4type\xa6opened"
    frame = len(payload).to_bytes(4, "little") + zlib.crc32(payload).to_bytes(4, "little")
    data = file.read_bytes()
    file.write_bytes(data + frame + payload + data)
    assert await read_all(await reopened(tmp_path)) == some(1) * 2


async def test_text_that_cannot_be_encoded_or_is_endless_is_kept_cleaned(tmp_path: Path) -> None:
    journal = await reopened(tmp_path)
    await journal.append([opened("a", model="x\ud800y"), opened("b", model="z" * 10**6)])
    first, second = await read_all(journal)
    assert first.model == "x\ufffdy"
    assert second.model is not None and len(second.model) == 512


async def test_a_full_journal_refuses_and_takes_again_when_there_is_room(tmp_path: Path) -> None:
    journal = await reopened(tmp_path, max_bytes=4000, segment_bytes=1000)
    taken = 0
    with pytest.raises(OSError, match="4000") as refused:
        while True:
            await journal.append(some(5, taken))
            taken += 5
    assert refused.value.errno == errno.EFBIG
    assert sum(file.stat().st_size for file in files(tmp_path)) <= 4000
    first = await journal.read(10)
    await journal.release()
    second = await journal.read(20)
    await journal.release()
    await journal.append(some(5, taken))
    rest = await read_all(journal)
    assert [*first, *second, *rest] == some(taken + 5)


async def test_an_append_is_synced_before_it_returns(tmp_path: Path) -> None:
    synced: list[int] = []

    def sync(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        os.fsync(file)

    journal = FileJournal(tmp_path, max_bytes=2**20, sync=sync)
    await journal.append(some(1))
    sizes = [file.stat().st_size for file in files(tmp_path)]
    assert synced[0] == sizes[0]
    assert len(synced) == 2  # the file, and once the folder that names it
    await journal.append(some(1))
    assert len(synced) == 3


async def test_what_could_not_be_synced_is_not_kept(tmp_path: Path) -> None:
    broken = True

    def sync(file: int) -> None:
        if broken:
            raise OSError(errno.EIO, "broken")

    journal = FileJournal(tmp_path, max_bytes=2**20, sync=sync)
    with pytest.raises(OSError, match="broken"):
        await journal.append(some(3))
    assert files(tmp_path) == [] and not journal.backlog
    broken = False
    await journal.append(some(3, 3))
    assert await read_all(journal) == some(3, 3)


async def fill(journal: FileJournal, count: int = 50) -> int:
    """Append until the disk refuses; return how many records were taken."""
    taken = 0
    with pytest.raises(OSError):
        while True:
            await journal.append(some(count, taken))
            taken += count
    return taken


async def test_a_full_disk_keeps_whole_appends_and_goes_on_after(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        journal = await reopened(disk / "journal")
        taken = await fill(journal)
        assert taken > 0
        assert await read_all(await reopened(disk / "journal")) == some(taken)
        assert files(disk / "journal") == []
        again = await reopened(disk / "journal")
        await again.append(some(5))
        assert await read_all(again) == some(5)


async def test_a_file_that_may_not_grow_keeps_whole_appends(tmp_path: Path) -> None:
    journal = await reopened(tmp_path)
    with files_limited_to(10_000):
        taken = await fill(journal)
    assert taken > 0
    await journal.append(some(5, taken))
    assert await read_all(await reopened(tmp_path)) == some(taken + 5)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size`: a write is cut short, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


async def test_a_segment_that_cannot_be_read_does_not_hold_up_the_others(tmp_path: Path) -> None:
    journal = await reopened(tmp_path, segment_bytes=1)
    await journal.append(some(1))
    await journal.append(some(1, 1))
    first = files(tmp_path)[0]
    first.unlink()
    first.mkdir()  # reading a folder fails for root, too
    assert await read_all(journal) == some(1, 1)


async def test_a_lost_file_costs_what_was_in_it_and_no_more(tmp_path: Path) -> None:
    journal = await reopened(tmp_path)
    await journal.append(some(1))
    files(tmp_path)[0].unlink()
    with pytest.raises(FileNotFoundError):
        await journal.append(some(1, 1))
    await journal.append(some(1, 1))
    assert await read_all(journal) == some(1, 1)


WRITER = """
import sys
from pathlib import Path
import anyio
from gateway.core.sessions import SessionOpened
from gateway.store.journal import FileJournal

async def main():
    journal = FileJournal(Path(sys.argv[1]), max_bytes=2**26, segment_bytes=5000)
    await journal.open()
    for start in range(0, 10**6, 10):
        names = [f"s{number:06}" for number in range(start, start + 10)]
        await journal.append([SessionOpened(n, "r", "n", "m", 1.5, boot="b") for n in names])
        print(start + 10, flush=True)

anyio.run(main)
"""


@pytest.mark.parametrize("appends", [1, 7, 40])
async def test_after_kill_9_all_that_was_said_to_be_kept_is_there(
    tmp_path: Path, appends: int
) -> None:
    with subprocess.Popen(  # noqa: ASYNC220 nothing else runs on this loop
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(appends)]
        process.kill()
        said += process.stdout.readlines()
    kept = int([line for line in said if line.endswith("\n")][-1])
    found = await read_all(await reopened(tmp_path), limit=100)
    assert kept <= len(found) <= kept + 10
    assert found == some(len(found))
