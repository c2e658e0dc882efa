"""The queue: order, limits, pausing, taking over, and what watchers hear."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from gateway.core.downloads import (
    Download,
    DownloadOrder,
    DownloadPlan,
    DownloadState,
    Fetched,
    Progress,
    Tally,
    parse_order,
)
from gateway.core.errors import (
    DatabaseUnavailable,
    DownloadNotFound,
    HubTokenRequired,
    HubUnavailable,
    InvalidRequest,
    Overloaded,
    ShuttingDown,
    StaleTransition,
)
from gateway.core.ports import DownloadChange
from gateway.services.downloads import DownloadService
from gateway.testing import MemoryDownloadStore

S = DownloadState
A, B, C = (parse_order(f"o/{name}") for name in "abc")


class GatedSource:
    """A DownloadSource whose downloads go on when the test lets them."""

    def __init__(self) -> None:
        self.place = "here"
        self.gates: dict[str, anyio.Event] = {}
        self.running: list[str] = []
        self.begun: list[tuple[str, str | None]] = []
        self.discarded: list[str] = []
        self.fault: Exception | None = None
        self.was_there = False

    def gate(self, order: DownloadOrder) -> anyio.Event:
        return self.gates.setdefault(order.repo, anyio.Event())

    async def plan(self, order: DownloadOrder) -> DownloadPlan:
        return DownloadPlan(order, bytes_total=10)

    async def fetch(
        self, order: DownloadOrder, tally: Tally, *, commit: str | None, since: float
    ) -> Fetched:
        self.begun.append((order.repo, commit))
        self.running.append(order.repo)
        try:
            tally.commit, tally.bytes_total, tally.bytes_fetched = "c" * 40, 10, 4
            await self.gate(order).wait()
            if self.fault is not None:
                raise self.fault
            tally.bytes_fetched = 10
            return Fetched("done", "/path", "c" * 40, self.was_there)
        finally:
            self.running.remove(order.repo)

    async def discard(self, order: DownloadOrder) -> None:
        self.discarded.append(order.repo)


class Queue:
    """A DownloadService with what is around it."""

    def __init__(self, store: MemoryDownloadStore | None = None, *, node: str = "n") -> None:
        self.store = store or MemoryDownloadStore()
        self.source = GatedSource()
        self.told: list[Download] = []
        self.running_when_told: list[int] = []
        self.refusal: Exception | None = None
        self.service = DownloadService(
            self.store,
            {"huggingface": self.source},
            node=node,
            boot="b",
            max_running=2,
            max_watchers=2,
            admit=self.admit,
            completed=self.completed,
        )

    async def admit(self, _order: DownloadOrder) -> None:
        if self.refusal is not None:
            raise self.refusal

    def completed(self, download: Download) -> None:
        self.told.append(download)
        self.running_when_told.append(len(self.service._runs.jobs))
        raise RuntimeError("who is told may fail")

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.service.run)
            with anyio.fail_after(20):
                yield
            tasks.cancel_scope.cancel()

    async def running(self, order: DownloadOrder) -> Download:
        """Order a download and return once its source is at it."""
        ordered = await self.service.start(order)
        while order.repo not in self.source.running:
            await anyio.lowlevel.checkpoint()
        return ordered

    async def until(self, download: Download, state: DownloadState) -> Download:
        async with self.service.watch([download.id]) as changes:
            async for found in changes:
                if found.state is state:
                    return found
        raise AssertionError(f"it never was {state}")


@pytest.fixture
def queue() -> Queue:
    return Queue()


async def test_a_download_is_carried_out_and_its_success_told(queue: Queue) -> None:
    async with queue.working():
        ordered = await queue.service.start(A)
        assert ordered.state is S.QUEUED
        running = await queue.until(ordered, S.RUNNING)
        queue.source.gate(A).set()
        done = await queue.until(ordered, S.SUCCEEDED)
    assert running.id == done.id
    assert (done.path, done.commit, done.message) == ("/path", "c" * 40, "done")
    assert (done.progress.bytes_done, done.progress.bytes_total) == (10, 10)
    assert [told.id for told in queue.told] == [ordered.id]
    assert queue.running_when_told == [0]  # it takes no place any more


async def test_what_was_there_is_skipped(queue: Queue) -> None:
    queue.source.was_there = True
    queue.source.gate(A).set()
    async with queue.working():
        done = await queue.until(await queue.service.start(A), S.SKIPPED)
    assert done.path == "/path" and done.message


async def test_only_so_many_run_and_the_oldest_come_first(queue: Queue) -> None:
    async with queue.working():
        first, _, third = [await queue.service.start(order) for order in (A, B, C)]
        await queue.until(first, S.RUNNING)
        while len(queue.source.running) < 2:
            await anyio.lowlevel.checkpoint()
        assert queue.source.running == ["o/a", "o/b"]
        assert (await queue.service.find(third.id)).state is S.QUEUED
        queue.source.gate(A).set()
        await queue.until(third, S.RUNNING)


async def test_the_same_order_is_one_download_until_it_ends(queue: Queue) -> None:
    queue.source.gate(A).set()
    first = await queue.service.start(A)
    assert (await queue.service.start(A)).id == first.id
    assert (await queue.service.start(parse_order("o/a", force=True))).id != first.id
    async with queue.working():
        await queue.until(first, S.SUCCEEDED)
    assert (await queue.service.start(A)).id != first.id


async def test_a_paused_one_stops_and_goes_on_with_its_commit(queue: Queue) -> None:
    async with queue.working():
        ordered = await queue.running(A)
        paused = await queue.service.pause(ordered.id)
        assert queue.source.running == []
        assert (paused.state, paused.progress.bytes_done) == (S.PAUSED, 4)
        with pytest.raises(StaleTransition):
            await queue.service.pause(ordered.id)
        await queue.service.resume(ordered.id)
        queue.source.gate(A).set()
        await queue.until(ordered, S.SUCCEEDED)
    assert queue.source.begun == [("o/a", None), ("o/a", "c" * 40)]


async def test_a_cancelled_one_stops_and_leaves_nothing(queue: Queue) -> None:
    async with queue.working():
        ordered = await queue.running(A)
        cancelled = await queue.service.cancel(ordered.id)
        assert cancelled.state is S.CANCELLED and queue.source.running == []
        for act in (queue.service.resume, queue.service.pause, queue.service.cancel):
            with pytest.raises(StaleTransition) as refused:
                await act(ordered.id)
            assert refused.value.hint is not None
        assert "already" in refused.value.message  # it was cancelled before
    assert "o/a" in queue.source.discarded


async def test_what_another_download_still_needs_is_not_deleted(queue: Queue) -> None:
    one = await queue.service.start(A)
    await queue.service.start(parse_order("o/a", patterns=["*.json"]))
    await queue.service.cancel(one.id)
    assert queue.source.discarded == []


async def test_a_failure_is_told_with_its_reason_and_can_be_resumed(queue: Queue) -> None:
    queue.source.fault = HubUnavailable("The Hub is away.")
    queue.source.gate(A).set()
    async with queue.working():
        ordered = await queue.service.start(A)
        failed = await queue.until(ordered, S.FAILED)
        assert failed.error is not None
        assert (failed.error.code, failed.error.retryable) == ("hub_unavailable", True)
        assert failed.progress.bytes_done == 4
        queue.source.fault = None
        resumed = await queue.service.resume(ordered.id)
        assert resumed.error is None
        done = await queue.until(ordered, S.SUCCEEDED)
    assert done.error is None


async def test_the_same_order_goes_on_with_one_that_failed(queue: Queue) -> None:
    queue.source.fault = HubUnavailable("The Hub is away.")
    queue.source.gate(A).set()
    async with queue.working():
        ordered = await queue.service.start(A)
        await queue.until(ordered, S.FAILED)
        queue.source.fault = None
        again = await queue.service.start(A)
        assert (again.id, again.error) == (ordered.id, None)
        assert again.progress.bytes_done == 4
        await queue.until(ordered, S.SUCCEEDED)
    # A revision is looked up anew by whoever orders anew.
    assert queue.source.begun == [("o/a", None), ("o/a", None)]
    assert [each.id for each in await queue.service.newest()] == [ordered.id]


async def test_another_order_does_not_go_on_with_one_that_failed(queue: Queue) -> None:
    queue.source.fault = HubUnavailable("The Hub is away.")
    queue.source.gate(A).set()
    async with queue.working():
        ordered = await queue.service.start(A)
        await queue.until(ordered, S.FAILED)
        assert (await queue.service.start(parse_order("o/a", force=True))).id != ordered.id
        queue.source.place = "elsewhere"
        assert (await queue.service.start(A)).id != ordered.id


async def test_a_defect_shows_nothing_of_itself(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.source.fault = RuntimeError("secret")
    queue.source.gate(A).set()
    async with queue.working():
        failed = await queue.until(await queue.service.start(A), S.FAILED)
    assert failed.error is not None and failed.error.code == "internal"
    assert "secret" not in failed.error.message
    assert "RuntimeError: secret" in caplog.text


async def test_a_gateway_that_stops_gives_back_what_it_runs(queue: Queue) -> None:
    async with queue.working():
        ordered = await queue.running(A)
    given_back = await queue.service.find(ordered.id)
    assert (given_back.state, given_back.progress.bytes_done) == (S.QUEUED, 4)
    again = Queue(queue.store)
    again.source.gate(A).set()
    async with again.working():
        await again.until(ordered, S.SUCCEEDED)
    assert again.source.begun == [("o/a", "c" * 40)]


async def test_draining_stops_at_once_and_takes_no_more(queue: Queue) -> None:
    async with queue.working():
        ordered = await queue.running(A)
        await queue.service.drain()
        assert queue.source.running == []
        assert (await queue.service.find(ordered.id)).state is S.QUEUED
        with pytest.raises(ShuttingDown):
            await queue.service.start(B)
        with pytest.raises(ShuttingDown):
            await queue.service.resume(ordered.id)


async def test_one_that_another_gateway_paused_stops_at_the_next_beat(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.services.download_runs.BEAT_S", 0.01)
    elsewhere = Queue(queue.store, node="other")
    async with queue.working():
        ordered = await queue.running(A)
        await elsewhere.service.pause(ordered.id)
        while queue.source.running:
            await anyio.lowlevel.checkpoint()
        assert (await queue.service.find(ordered.id)).state is S.PAUSED


async def test_one_that_another_gateway_cancelled_is_cleared_away_here(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.services.download_runs.BEAT_S", 0.01)
    elsewhere = Queue(queue.store, node="other")
    async with queue.working():
        ordered = await queue.running(A)
        await elsewhere.service.cancel(ordered.id)
        while not queue.source.discarded:
            await anyio.lowlevel.checkpoint()
    assert queue.source.running == []


async def test_two_gateways_do_not_run_the_same_one(queue: Queue) -> None:
    other = Queue(queue.store, node="other")
    async with queue.working(), other.working():
        for order in (A, B, C):
            await queue.service.start(order)
        while len(queue.source.running + other.source.running) < 3:
            await anyio.lowlevel.checkpoint()
    assert sorted(queue.source.running + other.source.running) == []
    begun = [name for name, _ in queue.source.begun + other.source.begun]
    assert len(begun) == len(set(begun)) == 3


class AwayStore(MemoryDownloadStore):
    """A store that is away for the next so many writes of an end."""

    def __init__(self) -> None:
        super().__init__()
        self.away = 0

    async def move(self, download_id, change: DownloadChange, worker=None, **rest):  # type: ignore[no-untyped-def]
        if worker is not None and self.away:
            self.away -= 1
            raise DatabaseUnavailable("The database is away.")
        return await super().move(download_id, change, worker, **rest)


async def test_an_end_is_recorded_when_the_database_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.services.download_runs.LOOK_S", 0.01)
    store = AwayStore()
    store.away = 3
    queue = Queue(store)
    queue.source.gate(A).set()
    async with queue.working():
        await queue.until(await queue.service.start(A), S.SUCCEEDED)
    assert store.away == 0


async def test_who_may_not_is_refused_before_anything_is_queued(queue: Queue) -> None:
    queue.refusal = HubTokenRequired("A token is needed.")
    for act in (queue.service.start, queue.service.plan):
        with pytest.raises(HubTokenRequired):
            await act(A)
    assert await queue.service.newest() == []


async def test_what_is_not_there_and_what_cannot_be_is_said(queue: Queue) -> None:
    for act in (queue.service.find, queue.service.pause, queue.service.cancel):
        with pytest.raises(DownloadNotFound):
            await act("nope")
    with pytest.raises(InvalidRequest):
        await queue.service.start(parse_order("ollama/x"))
    with pytest.raises(InvalidRequest):
        await queue.service.newest(501)


async def test_one_for_another_cache_says_so_and_is_had_here_when_it_is_resumed() -> None:
    queue = Queue()
    at = time.time()
    progress = Progress(bytes_done=7, bytes_total=10)
    foreign = Download("x", A, "elsewhere", S.QUEUED, at, at, progress)
    await queue.store.add(foreign)
    queue.source.gate(A).set()
    async with queue.working():
        await queue.until(await queue.service.start(B), S.RUNNING)  # younger, and before it
        waiting = await queue.service.find("x")
        assert waiting.state is S.QUEUED
        assert waiting.message is not None and "resume" in waiting.message
        [listed] = await queue.service.newest(states=[S.QUEUED])
        assert listed == waiting
        resumed = await queue.service.resume("x")
        assert (resumed.place, resumed.message) == ("here", None)
        assert resumed.progress.bytes_done == 0  # what was fetched lies elsewhere
        assert (await queue.until(resumed, S.SUCCEEDED)).message == "done"


async def test_one_that_is_paused_keeps_its_cache_when_it_is_resumed(queue: Queue) -> None:
    await queue.store.add(Download("x", A, "elsewhere", S.PAUSED, 0.0, 0.0))
    resumed = await queue.service.resume("x")
    assert (resumed.state, resumed.place) == (S.QUEUED, "elsewhere")
    assert resumed.message is not None


async def test_one_that_has_ended_is_forgotten_and_no_other(queue: Queue) -> None:
    queue.source.fault = HubUnavailable("The Hub is away.")
    queue.source.gate(A).set()
    async with queue.working():
        failed = await queue.service.start(A)
        await queue.until(failed, S.FAILED)
        waiting = await queue.service.start(B)
        with pytest.raises(StaleTransition):
            await queue.service.forget(waiting.id)
        assert (await queue.service.forget(failed.id)).id == failed.id
        assert queue.source.discarded == ["o/a"]
        with pytest.raises(DownloadNotFound):
            await queue.service.forget(failed.id)
        assert [each.id for each in await queue.service.newest()] == [waiting.id]


async def test_watchers_hear_the_present_first_and_the_end(queue: Queue) -> None:
    async with queue.working():
        ordered = await queue.running(A)
        heard = []
        async with queue.service.watch([ordered.id]) as changes:
            async for download in changes:
                heard.append(download)
                queue.source.gate(A).set()
    assert heard[0].state is S.RUNNING
    assert heard[-1].state is S.SUCCEEDED
    done = [download.progress.bytes_done for download in heard]
    assert done == sorted(done)


async def test_whoever_watches_all_hears_of_new_ones_but_not_of_old_ends(queue: Queue) -> None:
    queue.source.gate(A).set()
    async with queue.working():
        old = await queue.service.start(A)
        await queue.until(old, S.SUCCEEDED)
        heard = []
        async with queue.service.watch() as changes:
            new = await queue.service.start(B)
            async for download in changes:
                heard.append((download.id, download.state))
                if download.state is S.RUNNING:
                    queue.source.gate(B).set()
                if download.ended:
                    break
    assert {each for each, _ in heard} == {new.id}
    assert heard[-1] == (new.id, S.SUCCEEDED)


async def test_whoever_watches_all_hears_the_end_of_one_among_many(queue: Queue) -> None:
    async with queue.working(), queue.service.watch() as changes:
        old = await queue.service.start(A)
        async for download in changes:
            if download.state is S.RUNNING:
                break
        for number in range(150):
            at = old.created_at + 1 + number
            order = parse_order(f"o/n{number}")
            await queue.store.add(Download(f"n{number}", order, "here", S.SUCCEEDED, at, at))
        queue.source.gate(A).set()
        async for download in changes:
            if download.id == old.id and download.ended:
                break
        assert download.state is S.SUCCEEDED


async def test_an_end_is_told_once_and_last(queue: Queue) -> None:
    async with queue.working(), queue.service.watch() as changes:
        await queue.service.start(A)
        second = await queue.service.start(B)
        heard: dict[str, list[DownloadState]] = {}
        async for download in changes:
            heard.setdefault(download.order.repo, []).append(download.state)
            queue.source.gate(A).set()
            if heard.get("o/a", [])[-1:] == [S.SUCCEEDED]:
                queue.source.gate(B).set()
            if download.id == second.id and download.ended:
                break
    for states in heard.values():
        assert states.count(S.SUCCEEDED) == 1 and states[-1] is S.SUCCEEDED


class HeldStore(MemoryDownloadStore):
    """A store that lets the test do something between an answer and its arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.answered, self.go_on = anyio.Event(), anyio.Event()
        self.holds_claims = False
        self.holds_returns = False

    async def claim(self, *given):  # type: ignore[no-untyped-def]
        found = await super().claim(*given)
        if self.holds_claims and found is not None:
            await self._hold()
        return found

    async def move(self, download_id, change: DownloadChange, worker=None, **rest):  # type: ignore[no-untyped-def]
        found = await super().move(download_id, change, worker, **rest)
        if self.holds_returns and worker is not None:
            self.holds_returns = False
            await self._hold()
        return found

    async def _hold(self) -> None:
        self.answered.set()
        await self.go_on.wait()


async def test_what_is_claimed_after_the_drain_began_is_given_back() -> None:
    store = HeldStore()
    store.holds_claims = True
    queue = Queue(store)
    async with queue.working():
        ordered = await queue.service.start(A)
        await store.answered.wait()
        await queue.service.drain()
        store.go_on.set()
        while (await queue.service.find(ordered.id)).state is not S.QUEUED:
            await anyio.lowlevel.checkpoint()
    assert queue.source.begun == []


async def test_one_that_is_resumed_while_it_still_stops_runs_again() -> None:
    store = HeldStore()
    queue = Queue(store)
    async with queue.working(), anyio.create_task_group() as tasks:
        ordered = await queue.running(A)
        store.holds_returns = True
        tasks.start_soon(queue.service.pause, ordered.id)
        await store.answered.wait()
        await queue.service.resume(ordered.id)
        while (await store.find(ordered.id)).state is not S.RUNNING:  # type: ignore[union-attr]
            await anyio.lowlevel.checkpoint()
        store.go_on.set()
        while not queue.source.running:
            await anyio.lowlevel.checkpoint()
    assert len(queue.source.begun) == 2


async def test_one_that_cannot_look_up_the_token_waits_for_the_database(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.services.download_runs.LOOK_S", 0.01)
    queue.source.fault = DatabaseUnavailable("The database is away.")
    queue.source.gate(A).set()
    async with queue.working():
        ordered = await queue.service.start(A)
        while len(queue.source.begun) < 3:
            await anyio.lowlevel.checkpoint()
        queue.source.fault = None
        await queue.until(ordered, S.SUCCEEDED)


async def test_watchers_are_bounded_and_leave_no_trace(queue: Queue) -> None:
    ordered = await queue.service.start(A)
    async with queue.service.watch([ordered.id]), queue.service.watch():
        with pytest.raises(Overloaded):
            await queue.service.watch().__aenter__()
    async with queue.service.watch([ordered.id]) as changes:
        assert (await anext(changes)).id == ordered.id
