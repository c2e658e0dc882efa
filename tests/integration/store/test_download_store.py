"""The contract of every DownloadStore."""

import pytest
from msgspec.structs import replace

from gateway.core.downloads import (
    ENDED,
    LEGAL_SOURCES,
    SETTLED,
    Download,
    DownloadFault,
    DownloadOrder,
    DownloadState,
    Progress,
)
from gateway.core.ports import DownloadChange, DownloadStore, Worker

S = DownloadState
ORDER = DownloadOrder("huggingface", "o/n", "v1", ("*.json", "a/"), force=True)
HERE = "host:/cache"
ME = Worker("node", "boot", 30.0)
AGAIN = Worker("node", "next boot", 30.0)
OTHER = Worker("other", "boot", 30.0)
OVER = Worker("node", "boot", -1.0)
"""Whose leases are over at once."""


def download(name: str = "a", at: float = 1000.25, state: S = S.QUEUED) -> Download:
    return Download(name, ORDER, HERE, state, at, at)


def plain(found: Download | None) -> Download | None:
    """Return the download without the time of its change, which the store sets."""
    return None if found is None else replace(found, updated_at=0.0)


async def test_a_download_comes_back_as_it_was(download_store: DownloadStore) -> None:
    whole = Download(
        id="a",
        order=ORDER,
        place=HERE,
        state=S.FAILED,
        created_at=1000.25,
        updated_at=2000.5,
        progress=Progress(1, 2**40, 3, 4),
        commit="c" * 40,
        path="/cache/x",
        message="so so",
        error=DownloadFault("code", "said", "do", True),
    )
    await download_store.add(whole)
    assert await download_store.find("a") == whole
    for unknown in ("", "b", "a' OR '1'='1", "\x00", "a\ud800"):
        assert await download_store.find(unknown) is None


async def test_the_newest_come_first_and_may_be_chosen_by_state(
    download_store: DownloadStore,
) -> None:
    states = {"a": S.QUEUED, "b": S.PAUSED, "c": S.QUEUED}
    for at, (name, state) in enumerate(states.items()):
        await download_store.add(download(name, float(at), state))
    assert [d.id for d in await download_store.newest(2)] == ["c", "b"]
    assert [d.id for d in await download_store.newest(9, [S.QUEUED])] == ["c", "a"]


async def test_the_oldest_of_ones_own_places_is_claimed_once(
    download_store: DownloadStore,
) -> None:
    await download_store.add(download("b", 2.0))
    await download_store.add(download("a", 1.0))
    await download_store.add(replace(download("c", 0.0), place="elsewhere"))
    first = await download_store.claim(ME, [HERE])
    second = await download_store.claim(OTHER, [HERE])
    assert first is not None and (first.id, first.state) == ("a", S.RUNNING)
    assert second is not None and second.id == "b"
    assert await download_store.claim(OTHER, [HERE]) is None
    assert await download_store.claim(ME, []) is None


async def test_what_an_earlier_run_left_is_claimed_at_once(download_store: DownloadStore) -> None:
    await download_store.add(download())
    assert await download_store.claim(ME, [HERE])
    assert await download_store.claim(AGAIN, [HERE])
    assert not await download_store.keep("a", ME, Progress(), None)
    assert await download_store.move("a", DownloadChange(S.SUCCEEDED), ME) is None
    assert await download_store.move("a", DownloadChange(S.SUCCEEDED), AGAIN)


async def test_another_gateway_takes_over_when_the_lease_is_over(
    download_store: DownloadStore,
) -> None:
    await download_store.add(download())
    assert await download_store.claim(ME, [HERE])
    assert await download_store.claim(OTHER, [HERE]) is None
    assert await download_store.keep("a", OVER, Progress(5), "c")
    taken = await download_store.claim(OTHER, [HERE])
    assert taken is not None and taken.progress.bytes_done == 5 and taken.commit == "c"
    assert not await download_store.keep("a", ME, Progress(), None)


async def test_what_nobody_runs_is_queued_again_by_a_gateway_of_another_place(
    download_store: DownloadStore,
) -> None:
    for number, worker in enumerate((ME, OTHER, OVER)):
        await download_store.add(download(f"d{number}", at=number))
        claimed = await download_store.claim(worker, [HERE])
        assert claimed is not None and claimed.id == f"d{number}"
    assert await download_store.claim(AGAIN, ["host:/new"]) is None
    states = {each.id: (each.state, each.place) for each in await download_store.newest(3)}
    # The second is run by another gateway, whose lease is not over.
    assert states == {"d0": (S.QUEUED, HERE), "d1": (S.RUNNING, HERE), "d2": (S.QUEUED, HERE)}
    moved = await download_store.move(
        "d0", DownloadChange(S.QUEUED, place="host:/new"), sources=[S.QUEUED]
    )
    assert moved is not None and moved.place == "host:/new"
    claimed = await download_store.claim(AGAIN, ["host:/new"])
    assert claimed is not None and claimed.id == "d0"


async def test_a_claim_clears_what_was_said_before(download_store: DownloadStore) -> None:
    fault = DownloadFault("code", "said")
    await download_store.add(replace(download(), error=fault, message="before"))
    claimed = await download_store.claim(ME, [HERE])
    assert claimed is not None and (claimed.error, claimed.message) == (None, None)


@pytest.mark.parametrize("target", S)
@pytest.mark.parametrize("source", S)
async def test_only_legal_transitions_happen(
    download_store: DownloadStore, source: S, target: S
) -> None:
    await download_store.add(download(state=source))
    moved = await download_store.move("a", DownloadChange(target))
    found = await download_store.find("a")
    assert found is not None
    if source in LEGAL_SOURCES[target]:
        assert moved is not None and plain(moved) == plain(found)
        assert found.state is target
    else:
        assert moved is None and found.state is source


async def test_a_transition_may_be_narrowed_to_some_sources(
    download_store: DownloadStore,
) -> None:
    await download_store.add(download(state=S.RUNNING))
    assert await download_store.move("a", DownloadChange(S.QUEUED), sources=[S.PAUSED]) is None
    assert await download_store.move("a", DownloadChange(S.QUEUED), sources=[S.RUNNING])


async def test_a_change_keeps_what_it_does_not_name(download_store: DownloadStore) -> None:
    await download_store.add(
        replace(download(), path="/p", commit="c", progress=Progress(1, 2, 3, 4))
    )
    await download_store.move("a", DownloadChange(S.PAUSED))
    found = await download_store.find("a")
    assert found is not None
    assert (found.path, found.commit, found.progress) == ("/p", "c", Progress(1, 2, 3, 4))


async def test_a_change_may_forget_what_the_revision_led_to(download_store: DownloadStore) -> None:
    failed = replace(download(state=S.FAILED), commit="c", progress=Progress(1, 2, 3, 4))
    await download_store.add(failed)
    moved = await download_store.move("a", DownloadChange(S.QUEUED, looks_up_anew=True))
    assert moved is not None
    assert (moved.commit, moved.progress) == (None, Progress(1, 2, 3, 4))


async def test_only_what_has_ended_is_removed(download_store: DownloadStore) -> None:
    for state in S:
        await download_store.add(download(state.name, state=state))
    gone = {state for state in S if await download_store.remove(state.name)}
    assert gone == ENDED
    assert {each.state for each in await download_store.newest(100)} == set(S) - ENDED
    assert not await download_store.remove("SUCCEEDED")


async def test_the_oldest_that_ended_are_purged_but_no_failed_ones(
    download_store: DownloadStore,
) -> None:
    for at, state in enumerate(S):
        await download_store.add(download(f"old {state}", float(at), state))
    await download_store.add(download("new", 5000.0, S.SUCCEEDED))
    assert [await download_store.purge(4000.0, 2) for _ in range(3)] == [2, 1, 0]
    left = {each.id for each in await download_store.newest(100)}
    assert left == {"new", *(f"old {state}" for state in S if state not in SETTLED)}
