"""IsolatedEngine with real processes: the same answers, and deaths that are nobody else's."""

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup, UNIXSocketStream

from gateway.core.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    ModelLoadFailed,
    Overloaded,
)
from gateway.core.events import Finished, Generation, Started, TextDelta, collect
from gateway.core.messages import GenerateRequest, Options
from gateway.core.models import LocalModel, ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.engine import isolated
from gateway.engine.child_process import start_child
from gateway.engine.child_wire import WINDOW, Ask, FromChild, Open, Told, decode_from_child
from gateway.engine.isolated import IsolatedEngine, open_isolated
from gateway.engine.link import Link
from gateway.engine.loader import LoadConfig, LoadedModel
from gateway.engine.manager import HuggingFaceModelManager
from gateway.engine.opening import EngineSpec
from gateway.settings import child_environment
from tests.integration.engine.conftest import StartEngine, ask

REF = ModelRef("huggingface", "tiny")
OpenChild = Callable[..., AbstractAsyncContextManager[IsolatedEngine]]


def spec_of(folder: Path, *, max_active: int = 8, max_queue: int = 16) -> EngineSpec:
    return EngineSpec(
        REF,
        LocalModel("tiny", str(folder), 1),
        LoadConfig(device="cpu"),
        max_active=max_active,
        max_queue=max_queue,
    )


async def open_child(tasks: TaskGroup, folder: Path, limit_bytes: int = 0) -> IsolatedEngine:
    return await open_isolated(
        spec_of(folder),
        task_group=tasks,
        environment=child_environment(),
        memory_limit_bytes=limit_bytes,
    )


@asynccontextmanager
async def child_of(folder: Path) -> AsyncIterator[IsolatedEngine]:
    """Give a loaded model in a process of its own; at the end no process of it is left."""
    async with anyio.create_task_group() as tasks:
        engine = await open_child(tasks, folder)
        try:
            yield engine
        finally:
            await engine.aclose()
    assert engine.pid not in children()


@pytest.fixture(scope="module")
async def shared(llama_folder: Path) -> AsyncIterator[IsolatedEngine]:
    """One child for the tests that leave it as it was."""
    async with child_of(llama_folder) as engine:
        yield engine


def children() -> set[int]:
    """Return the processes below this one, zombies too."""
    tasks = Path(f"/proc/{os.getpid()}/task")
    return {int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()}


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def failure_of(engine: IsolatedEngine, request: GenerateRequest) -> str:
    with pytest.raises(EngineFailed) as caught:
        await collect(engine.stream(request))
    return caught.value.message


async def load_failure_of(folder: Path, limit_bytes: int = 0) -> ModelLoadFailed:
    async with anyio.create_task_group() as tasks:
        with pytest.raises(ModelLoadFailed) as caught:
            await open_child(tasks, folder, limit_bytes)
    return caught.value


def process_file(engine: IsolatedEngine, name: str) -> bytes:
    return Path(f"/proc/{engine.pid}/{name}").read_bytes()


# What one child serves


async def test_a_child_says_what_the_thread_says(
    shared: IsolatedEngine, llama: LoadedModel, start_engine: StartEngine
) -> None:
    requests = [
        ask("What is a gateway?", max_tokens=60),
        ask("x" * 600, max_tokens=20),
        ask("é🙂", temperature=1.0, seed=7),
        GenerateRequest(
            id="r", model="m", prompt="abc", raw=True, options=Options(temperature=0, max_tokens=9)
        ),
    ]
    async with start_engine(llama) as thread:
        expected = [await collect(thread.stream(request)) for request in requests]
    answers = [await collect(shared.stream(request)) for request in requests]
    assert [answer.text for answer in answers] == [answer.text for answer in expected]
    assert [answer.usage for answer in answers] == [answer.usage for answer in expected]


async def test_sixteen_streams_at_once_say_what_each_says_alone(shared: IsolatedEngine) -> None:
    requests = [ask(f"Question {n}", max_tokens=20 + n) for n in range(16)]
    answers: dict[int, Generation] = {}

    async def run(index: int) -> None:
        answers[index] = await collect(shared.stream(requests[index]))

    async with anyio.create_task_group() as tasks:
        for index in range(16):
            tasks.start_soon(run, index)
    for index, request in enumerate(requests):
        assert answers[index].text == (await collect(shared.stream(request))).text
        assert answers[index].usage.completion_tokens == 20 + index


async def test_errors_of_a_request_cross_as_they_are(shared: IsolatedEngine) -> None:
    with pytest.raises(ContextLengthExceeded, match="1024 tokens") as caught:
        await collect(shared.stream(ask("x" * 1100)))
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequest, match="empty"):
        await collect(shared.stream(GenerateRequest(id="r", model="m", prompt="", raw=True)))
    assert shared.alive


async def test_huge_prompts_are_refused_and_others_are_served(shared: IsolatedEngine) -> None:
    refusals = []

    async def ask_too_much() -> None:
        with pytest.raises(ContextLengthExceeded) as caught:
            await collect(shared.stream(ask("x" * 1_200_000)))
        refusals.append(caught.value)

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(ask_too_much)
        await anyio.wait_all_tasks_blocked()
        answer = await collect(shared.stream(ask("short", max_tokens=5)))
    assert answer.usage.completion_tokens == 5
    assert len(refusals) == 2


async def test_closing_a_stream_returns_when_the_child_has_let_go(shared: IsolatedEngine) -> None:
    for _ in range(3):
        async with aclosing(shared.stream(ask(max_tokens=900))) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        assert shared._inboxes == {}
    # Every slot and place in the queue is free again: more would be refused.
    streams = [shared.stream(ask(f"{n}", max_tokens=900)) for n in range(24)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(Overloaded):
        await collect(shared.stream(ask("one more")))
    for stream in streams:
        await stream.aclose()
    assert (await collect(shared.stream(ask(max_tokens=2)))).usage.completion_tokens == 2


async def test_cancelling_a_reader_stops_the_model(shared: IsolatedEngine) -> None:
    with anyio.CancelScope() as scope:
        async for event in shared.stream(ask(max_tokens=900)):
            if isinstance(event, TextDelta):
                scope.cancel()
    assert scope.cancelled_caught
    assert shared._inboxes == {}


async def test_a_slow_reader_holds_back_its_own_stream_only(shared: IsolatedEngine) -> None:
    slow = shared.stream(ask(max_tokens=400))
    assert isinstance(await anext(slow), Started)
    for n in range(3):
        quick = await collect(shared.stream(ask(f"another {n}", max_tokens=200)))
        assert quick.usage.completion_tokens == 200
    [inbox] = shared._inboxes.values()
    assert len(inbox._events) <= WINDOW
    assert not inbox.released.is_set()
    rest = [event async for event in slow]
    assert isinstance(rest[-1], Finished)
    assert rest[-1].usage.completion_tokens == 400


async def test_signals_meant_for_the_gateway_do_not_end_a_child(shared: IsolatedEngine) -> None:
    stream = shared.stream(ask(max_tokens=300))
    assert isinstance(await anext(stream), Started)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(shared.pid, number)
    rest = [event async for event in stream]
    assert isinstance(rest[-1], Finished)
    assert rest[-1].usage.completion_tokens == 300
    assert os.getsid(shared.pid) == shared.pid != os.getsid(0)


async def test_a_child_tells_what_its_process_takes(shared: IsolatedEngine) -> None:
    resident = int(process_file(shared, "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert resident / 2 < shared.memory_bytes < resident * 2


async def test_a_child_inherits_no_secret_and_no_file(
    shared: IsolatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("GATEWAY_DATABASE_URL", "postgresql://u:canary@h/d")
    assert not any("canary" in value for value in child_environment().values())
    names = {line.split(b"=")[0] for line in process_file(shared, "environ").split(b"\0")}
    assert not any(name.startswith((b"GATEWAY_", b"HF_", b"OLLAMA_")) for name in names)
    assert process_file(shared, "oom_score_adj").strip() == b"500"


# Loads


async def test_a_model_that_cannot_be_loaded_fails_as_in_the_thread(tmp_path: Path) -> None:
    before, files = children(), open_files()
    for _ in range(3):
        failure = await load_failure_of(tmp_path)
        assert "no safetensors files" in failure.message
        assert failure.hint == "Only safetensors are loaded: other formats can run code."
    assert children() == before
    assert open_files() <= files + 2  # the loop's own, made at the first process


async def test_a_process_that_cannot_be_started_is_a_failed_load(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = open_files()
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert "No process can be started" in (await load_failure_of(llama_folder)).message
    assert open_files() <= files + 2


async def test_leaving_a_load_ends_its_process(llama_folder: Path) -> None:
    before = children()
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as openers:
                openers.start_soon(open_child, tasks, llama_folder)
                while children() == before:
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
    assert children() == before


async def test_a_child_killed_while_it_loads_is_a_failed_load(llama_folder: Path) -> None:
    before = children()

    async def kill_it() -> None:
        while not (found := children() - before):
            await anyio.lowlevel.checkpoint()
        os.kill(found.pop(), signal.SIGKILL)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill_it)
        assert "killed by SIGKILL" in (await load_failure_of(llama_folder)).message
    assert children() == before


async def test_a_load_that_exceeds_its_memory_fails_alone(
    llama_folder: Path, shared: IsolatedEngine
) -> None:
    failure = await load_failure_of(llama_folder, limit_bytes=150 * 2**20)
    assert "tiny" in failure.message
    assert (await collect(shared.stream(ask(max_tokens=2)))).usage.completion_tokens == 2


# Deaths


async def test_kill_9_tells_every_reader_at_once_and_leaves_nothing(
    llama_folder: Path,
) -> None:
    files = open_files()
    said: list[str] = []

    async def run(engine: IsolatedEngine, n: int) -> None:
        said.append(await failure_of(engine, ask(f"{n}", max_tokens=900)))

    async with child_of(llama_folder) as engine:
        running = engine.stream(ask(max_tokens=900))
        assert isinstance(await anext(running), Started)
        async with anyio.create_task_group() as tasks:
            for n in range(12):
                tasks.start_soon(run, engine, n)
            while len(engine._inboxes) < 13:
                await anyio.lowlevel.checkpoint()
            os.kill(engine.pid, signal.SIGKILL)
            with anyio.fail_after(3):
                with pytest.raises(EngineFailed, match="killed by SIGKILL"):
                    async for _ in running:
                        pass
                while len(said) < 12:
                    await anyio.lowlevel.checkpoint()
        assert all("SIGKILL" in message for message in said)
        assert not engine.alive
        assert "SIGKILL" in await failure_of(engine, ask())
    assert open_files() <= files + 2


async def test_a_child_that_hangs_is_taken_for_dead(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with child_of(llama_folder) as engine:
        stream = engine.stream(ask(max_tokens=900))
        assert isinstance(await anext(stream), Started)
        monkeypatch.setattr(isolated, "SILENT_BEATS", 1)
        monkeypatch.setattr(isolated, "BEAT_S", 0.2)
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(EngineFailed, match="did not answer for"):
            async for _ in stream:
                pass
        assert not engine.alive


async def test_a_child_that_does_not_end_when_told_is_killed(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "STOP_S", 0.1)
    async with child_of(llama_folder) as engine:
        os.kill(engine.pid, signal.SIGSTOP)
        await engine.aclose()
        assert engine.pid not in children()


async def test_closing_the_engine_ends_its_streams_with_an_error(llama_folder: Path) -> None:
    async with child_of(llama_folder) as engine:
        stream = engine.stream(ask(max_tokens=900))
        assert isinstance(await anext(stream), Started)
        # The child has said all that it may, and its answer waits for a reader who does not read.
        [inbox] = engine._inboxes.values()
        while len(inbox._events) < WINDOW - 1:
            await anyio.lowlevel.checkpoint()
        await engine.aclose()
        with pytest.raises(EngineFailed, match="stopped"):
            async for _ in stream:
                pass
        assert "unloaded" in await failure_of(engine, ask())
        assert engine._process.returncode == 0


async def test_a_child_without_a_gateway_ends_and_one_without_credit_says_no_more(
    llama_folder: Path,
) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = await start_child(REF, theirs, child_environment())
    async with process:
        async with await UNIXSocketStream.from_socket(ours) as stream:
            link: Link[FromChild] = Link(stream, decode_from_child)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(link.run_writer)
                link.post(Open(spec_of(llama_folder), 30, 0))
                await link.receive()
                link.post(Ask(1, ask(max_tokens=900)))
                told = 0
                while told < WINDOW:
                    told += sum(isinstance(message, Told) for message in await link.receive())
                assert told == WINDOW
                # The next thing that comes is the beat of an idle child, and no event.
                assert not any(isinstance(message, Told) for message in await link.receive())
                tasks.cancel_scope.cancel()
        with anyio.fail_after(5):
            assert await process.wait() != 0


async def test_the_manager_says_that_a_model_died_and_loads_it_anew(llama_folder: Path) -> None:
    changes: list[ModelState] = []
    engines: list[IsolatedEngine] = []
    files = LocalModel("tiny", str(llama_folder), 1)

    def observe(change: ModelStateChange) -> None:
        changes.append(change.state)

    async with anyio.create_task_group() as tasks:

        async def open_(_ref: ModelRef, _files: LocalModel) -> IsolatedEngine:
            engines.append(await open_child(tasks, llama_folder))
            return engines[-1]

        manager = HuggingFaceModelManager(
            open=open_, task_group=tasks, observe=observe, max_models=1, budget_bytes=10**10
        )
        async with manager.lease(REF, files) as engine:
            stream = engine.stream(ask(max_tokens=900))
            assert isinstance(await anext(stream), Started)
            os.kill(engines[0].pid, signal.SIGKILL)
            with pytest.raises(EngineFailed):
                async for _ in stream:
                    pass
        assert manager.residents() == []
        state, message = manager.state_of(REF)
        assert state is ModelState.FAILED
        assert message is not None and "died" in message
        async with manager.lease(REF, files) as engine:
            assert (await collect(engine.stream(ask(max_tokens=2)))).usage.completion_tokens == 2
        await manager.aclose()
    assert changes[1:5] == [
        ModelState.LOADED,
        ModelState.UNLOADING,
        ModelState.FAILED,
        ModelState.LOADING,
    ]
    assert not {engine.pid for engine in engines} & children()
