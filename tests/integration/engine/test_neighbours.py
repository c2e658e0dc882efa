"""One ledger over the real manager and the scripted Ollama server: who makes room for whom."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from gateway.core.errors import ModelTooLarge, NoRoom, ProviderUnavailable
from gateway.core.loading import LoadConfig
from gateway.core.models import LocalModel
from gateway.core.telling import Wait
from gateway.engine.files.needs import estimate_load
from gateway.providers.ollama_memory_wire import OllamaDevices, find_devices
from tests.begun import Begun
from tests.integration.engine.house import A, B
from tests.integration.engine.neighbours import (
    MB,
    SIZE,
    Neighbours,
    X,
    Y,
    Z,
    neighbours,
    request_to,
)
from tests.integration.ollama_peer import FOREVER, chat_line, chunks

OpenNeighbours = Callable[..., AbstractAsyncContextManager[Neighbours]]


@pytest.fixture
def need_bytes(llama_folder: Path) -> int:
    """What a load here takes."""
    size = (llama_folder / "model.safetensors").stat().st_size
    return estimate_load(LocalModel("tiny", str(llama_folder), size), LoadConfig())


@pytest.fixture
def for_one(llama_folder: Path, need_bytes: int) -> OpenNeighbours:
    """With room for one model, of either provider."""
    return partial(neighbours, llama_folder, 9 * MB + need_bytes // 2)


async def test_a_load_here_unloads_an_idle_model_of_ollama(for_one: OpenNeighbours) -> None:
    async with for_one() as both:
        await both.ask(X)
        await both.settle()
        assert both.budget.used_bytes == both.really_held == 9 * MB
        plan = await both.house.manager.plan(A, both.house.files)
        assert (plan.fits, plan.evictions) == (True, (X,))
        await both.house.load_all([A])
        assert both.peer.loaded == {}
        assert both.house.resident == {A}
        assert both.evictions() == {("ollama", "neighbour"): 1}


async def test_a_request_to_ollama_unloads_an_idle_model_here_before_it_is_sent(
    for_one: OpenNeighbours,
) -> None:
    async with for_one() as both:
        await both.house.load_all([A])
        plan = await both.ollama.plan(X)
        assert (plan.fits, plan.evictions) == (True, (A,))
        assert plan.need_bytes == plan.budget_bytes == both.budget.total_bytes
        asked = both.begin(X)
        request = await both.peer.request(0, "/api/chat")
        assert both.house.resident == set()
        assert both.really_held <= both.budget.total_bytes
        await asked.done.wait()
        assert asked.finished and request.answered.is_set()
        assert both.evictions() == {("huggingface", "neighbour"): 1}


async def test_one_model_of_ollama_goes_for_another(for_one: OpenNeighbours) -> None:
    async with for_one() as both:
        await both.ask(X)
        await both.ask(Y)
        assert set(both.peer.loaded) == {Y.model}
        assert both.evictions() == {("ollama", "load"): 1}


async def test_nobodys_stream_from_ollama_ends_for_a_load_here(for_one: OpenNeighbours) -> None:
    async with for_one(wait_s=30.0) as both:
        both.peer.models[X.model].gate = asyncio.Event()
        reader = both.begin(X)
        await reader.started.wait()
        assert not (await both.house.manager.plan(A, both.house.files)).fits
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(both.house.load_all, [A])
            await anyio.wait_all_tasks_blocked()
            assert not reader.done.is_set() and both.house.loads == []
            both.peer.models[X.model].gate.set()
        assert reader.finished
        assert both.house.resident == {A} and both.peer.loaded == {}


async def test_a_lease_here_is_waited_for_and_nothing_is_sent_meanwhile(
    for_one: OpenNeighbours,
) -> None:
    async with for_one() as both:
        async with both.house.manager.lease(A, both.house.files) as engine:
            with pytest.raises(NoRoom, match="in use: huggingface/a"):
                await both.ask(X)
            assert engine.alive and both.peer.seen("/api/chat") == []
        await both.ask(X)
        assert both.house.resident == set()


async def test_two_loads_at_once_do_not_both_take_the_room(for_one: OpenNeighbours) -> None:
    async with for_one(wait_s=30.0) as both:
        both.house.gate.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(both.house.load_all, [A])
            await both.house.began.wait()
            reader = both.begin(X)
            await anyio.wait_all_tasks_blocked()
            assert both.peer.seen("/api/chat") == []
            both.house.gate.set()
        await reader.done.wait()
        assert reader.finished and both.house.resident == set()


async def test_those_who_come_together_take_the_room_of_a_model_once(
    for_one: OpenNeighbours,
) -> None:
    async with for_one() as both:
        both.peer.models[X.model].gate = asyncio.Event()
        readers = [both.begin(X) for _ in range(5)]
        for reader in readers:
            await reader.started.wait()
        [holding] = both.house.ledger.residents("cpu")
        assert (holding.ref, holding.leases) == (X, 5)
        both.peer.models[X.model].gate.set()
        for reader in readers:
            await reader.done.wait()
        assert all(reader.finished for reader in readers)


async def test_an_estimate_is_replaced_by_what_ollama_tells(
    llama_folder: Path, need_bytes: int
) -> None:
    async with neighbours(llama_folder, 100 * MB) as both:
        both.peer.models[X.model].gate = asyncio.Event()
        reader = both.begin(X)
        request = await both.peer.request(0, "/api/chat")
        [before] = both.house.ledger.residents("cpu")
        assert (before.memory_bytes, before.basis) == (10 * MB, "estimated")
        account = both.house.ledger.report().devices[0]
        assert (account.reserved_bytes, account.free_bytes) == (10 * MB, 90 * MB)
        await reader.started.wait()
        both.peer.models[X.model].gate.set()
        await reader.done.wait()
        await both.settle()
        [after] = both.house.ledger.residents("cpu")
        assert (after.memory_bytes, after.basis) == (9 * MB, "told")
        assert after.load_s is not None
        assert request.answered.is_set()
        # The next time what it held is known.
        await both.ollama.unload(X)
        assert both.budget.used_bytes == 0
        assert (await both.ollama.plan(X)).need_bytes == 9 * MB


async def test_a_load_that_fails_at_ollama_gives_its_room_back(for_one: OpenNeighbours) -> None:
    async with for_one() as both:

        async def fail(exchange) -> None:  # type: ignore[no-untyped-def]
            await exchange.error(500, "llama runner process has terminated")

        both.peer.script(X.model, fail)
        with pytest.raises(Exception, match="terminated"):
            await both.ask(X)
        await both.settle()
        assert both.budget.used_bytes == 0


async def test_what_others_have_ollama_load_is_counted_and_idle_models_go_for_it(
    llama_folder: Path,
) -> None:
    async with neighbours(llama_folder, 9 * MB) as both:
        await both.house.load_all([A])
        both.peer.load(X.model)
        await both.settle()
        assert both.budget.free_bytes < 0
        while A in both.house.resident:
            await anyio.wait_all_tasks_blocked()
        assert both.budget.used_bytes == both.really_held == 9 * MB
        assert both.evictions() == {("huggingface", "overdrawn"): 1}


async def test_a_model_that_others_use_is_in_use_for_a_while(for_one: OpenNeighbours) -> None:
    async with for_one() as both:
        both.peer.load(X.model)
        await both.settle()
        assert (await both.house.manager.plan(A, both.house.files)).fits
        both.peer.load(X.model, FOREVER)
        plan = await both.house.manager.plan(A, both.house.files)
        assert not plan.fits and plan.reason and "in use: ollama/x" in plan.reason
        await both.house.clock.turn(11)
        assert (await both.house.manager.plan(A, both.house.files)).fits


async def test_a_model_whose_time_is_over_and_that_is_there_is_in_use(
    llama_folder: Path, need_bytes: int
) -> None:
    # The peer's models go at the start of 2027.
    late = neighbours(llama_folder, 9 * MB + need_bytes // 2, now=lambda: 1.9e9)
    async with late as both:
        both.peer.load(X.model)
        await both.settle()
        assert not (await both.house.manager.plan(A, both.house.files)).fits


async def test_our_own_requests_do_not_look_like_those_of_others(for_one: OpenNeighbours) -> None:
    async with for_one() as both:
        both.peer.load(X.model, FOREVER)
        await both.settle()
        await both.ask(X)  # after which it goes at another time
        assert (await both.house.manager.plan(A, both.house.files)).fits


async def test_a_model_that_does_not_go_counts_as_in_use(for_one: OpenNeighbours) -> None:
    async with for_one(evict_s=0.3) as both:
        both.peer.models[X.model].stays = True
        await both.ask(X)
        with pytest.raises(NoRoom):
            await both.house.load_all([A])
        assert both.house.loads == [] and X.model in both.peer.loaded
        assert both.budget.used_bytes == 9 * MB


async def test_a_request_that_meets_an_unload_waits_for_its_end_and_loads_anew(
    for_one: OpenNeighbours,
) -> None:
    async with for_one(wait_s=30.0, by_hand=False) as both:
        both.peer.models[X.model].stays = True
        await both.ask(X)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(both.house.load_all, [A])
            await both.peer.request(0, "/api/generate")  # the unload
            reader = both.begin(X)
            await anyio.wait_all_tasks_blocked()
            assert len(both.peer.seen("/api/chat")) == 1
            both.peer.models[X.model].stays = False
            both.peer.loaded.clear()
        await reader.done.wait()
        assert reader.finished
        assert both.really_held <= both.budget.total_bytes


async def test_a_server_that_is_gone_holds_nothing(for_one: OpenNeighbours) -> None:
    async with for_one() as both:
        await both.ask(X)
        await both.settle()
        await both.peer.stop()
        with pytest.raises(ProviderUnavailable):
            await both.settle()
        assert both.budget.used_bytes == 0
        await both.house.load_all([A])
        assert both.house.resident == {A}


async def test_each_device_has_the_part_that_is_on_it(llama_folder: Path) -> None:
    devices = OllamaDevices(gpu="cuda:1", usual="cuda:1")
    async with neighbours(llama_folder, 100 * MB, devices=devices) as both:
        both.peer.models[X.model].vram_size = 6 * MB
        assert (await both.ollama.plan(X)).need_bytes == 10 * MB
        reader = both.begin(X)
        await both.peer.request(0, "/api/chat")
        used = {each.device: each.used_bytes for each in both.house.ledger.report().devices}
        assert used == {"cuda:1": 10 * MB}
        await reader.done.wait()
        await both.settle()
        used = {each.device: each.used_bytes for each in both.house.ledger.report().devices}
        assert used == {"cpu": 3 * MB, "cuda:1": 6 * MB}


async def test_what_could_never_fit_is_told_and_not_sent(llama_folder: Path) -> None:
    async with neighbours(llama_folder, SIZE - 1) as both:
        plan = await both.ollama.plan(X)
        assert plan.is_too_large and not plan.fits
        with pytest.raises(ModelTooLarge) as caught:
            await both.ask(X)
        assert "GATEWAY_OLLAMA_SHARES_MEMORY" in str(caught.value.hint)
        assert both.peer.seen("/api/chat") == []
    async with neighbours(llama_folder, SIZE) as both:
        assert (await both.ask(X)).finished  # its weights would fit: nobody knows the rest yet


async def test_a_policy_that_knows_the_demand_spares_the_popular(
    llama_folder: Path, need_bytes: int
) -> None:
    for policy, survivor in (("lru", Y), ("lrfu", X)):
        async with neighbours(llama_folder, 20 * MB, policy=policy) as both:
            for _ in range(5):
                await both.ask(X)
            await both.settle()
            await both.ask(Y)
            await both.settle()
            await both.ask(Z)
            assert set(both.peer.loaded) == {survivor.model, Z.model}, policy


async def test_pinned_models_here_make_no_room_for_ollama(for_one: OpenNeighbours) -> None:
    async with for_one(wait_s=30.0) as both:
        await both.house.manager.load(B, both.house.files, pinned=True)
        with pytest.raises(NoRoom, match="pinned models: huggingface/b"):
            await both.ask(X)


@pytest.mark.parametrize(
    ("platform", "files", "wanted", "devices"),
    [
        ("linux", [], "auto", OllamaDevices("cuda:0", "cpu")),
        ("linux", ["nvidia0"], "auto", OllamaDevices("cuda:0", "cuda:0")),
        ("linux", ["kfd"], "cuda:2", OllamaDevices("cuda:2", "cuda:2")),
        ("linux", ["nvidia0"], "cpu", OllamaDevices("cuda:0", "cpu")),
        ("darwin", [], "auto", OllamaDevices("mps", "mps")),
    ],
)
def test_the_machine_tells_where_ollama_loads(
    tmp_path: Path, platform: str, files: list[str], wanted: str, devices: OllamaDevices
) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert find_devices(wanted, platform=platform, root=str(tmp_path)) == devices


async def test_an_answer_goes_by_itself_only_where_its_model_is_in_memory(
    for_one: OpenNeighbours,
) -> None:
    async with for_one() as both:
        heard = Begun()
        await both.ask(X)
        await both.settle()
        assert both.ollama.begin(request_to(Y), Y, heard._tell, heard._over) is None
        assert both.stay(X).leases == 0
        begun = Begun().begin(both.ollama, request_to(X), X)
        assert both.stay(X).leases == 1
        _, error, _ = await begun.end()
        assert (error, begun.rest, both.stay(X).leases) == (None, None, 0)
        both.stay(X).is_going = True
        assert both.ollama.begin(request_to(X), X, heard._tell, heard._over) is None
        assert both.stay(X).leases == 0


def until(event: asyncio.Event) -> Wait:
    async def wait() -> None:
        await event.wait()

    return wait


@pytest.mark.parametrize("when", ["before a word", "in the answer", "before the rest began"])
async def test_who_gives_an_answer_up_leaves_its_model(for_one: OpenNeighbours, when: str) -> None:
    wait = asyncio.Event()
    said = [] if when == "before a word" else [chat_line("a")]
    async with for_one() as both:
        await both.ask(X)
        await both.settle()
        both.peer.script(X.model, chunks([*said, wait]))
        begun = Begun(lambda _: until(wait) if when == "before the rest began" else None)
        begun.begin(both.ollama, request_to(X), X)
        assert both.stay(X).leases == 1
        while when == "in the answer" and not begun.tellings:
            await anyio.lowlevel.checkpoint()
        if when == "before the rest began":
            await begun.is_over.wait()
            assert both.stay(X).leases == 1
        begun.cancel()
        assert both.stay(X).leases == 0
        begun.cancel()
        assert both.stay(X).leases == 0
        wait.set()
