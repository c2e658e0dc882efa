"""IsolatedGenerator with real processes: the same answers, and deaths that are nobody else's."""

import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
import torch
from anyio.abc import TaskGroup, UNIXSocketStream

from gateway.core.cards import ModelCard
from gateway.core.embeddings import EmbedRequest, unpack_vector
from gateway.core.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    ModelLoadFailed,
    ModelUnloaded,
    NoRoom,
    Overloaded,
)
from gateway.core.events import Finished, Generation, Started, TextDelta
from gateway.core.loading import LoadConfig
from gateway.core.messages import GenerateRequest, Options, Tool
from gateway.core.models import LocalModel
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.engine.child import keeper
from gateway.engine.child.isolated import (
    PROCESS_BYTES,
    IsolatedEmbedder,
    IsolatedGenerator,
    open_isolated,
)
from gateway.engine.child.keeper import Keeper
from gateway.engine.child.link import Link
from gateway.engine.child.process import start_child
from gateway.engine.child.wire import (
    WINDOW,
    Ask,
    FromChild,
    Lent,
    Need,
    Open,
    Opened,
    Told,
    decode_from_child,
)
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.embedding.embedder import EmbeddingEngine
from gateway.engine.embedding.loader import load_embedder
from gateway.engine.engine import Embedder, Engine, Generator
from gateway.engine.files.needs import Setup, estimate_load
from gateway.engine.files.progress import LoadProgress
from gateway.engine.memory.memory import Memory
from gateway.engine.opening import EngineSpec
from gateway.settings import child_environment
from tests.integration.engine.conftest import StartEngine, ask
from tests.integration.engine.house import A, House, keeping_house
from tests.integration.engine.ledger import Ledger
from tests.tiny_models import build_encoder, build_model
from tests.told import collect

REF = ModelRef("huggingface", "tiny")
PROCESS = Setup(process_bytes=PROCESS_BYTES)


def spec_of(folder: Path, *, architecture: str = "LlamaForCausalLM") -> EngineSpec:
    card = ModelCard(architecture, "bert" if architecture == "BertModel" else "llama")
    return EngineSpec(
        REF,
        LocalModel("tiny", str(folder), 1, card=card),
        LoadConfig(device="cpu"),
        max_active=8,
        max_queue=16,
    )


async def test_a_child_packs_its_weights_behind_its_answers(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "m", dtype=torch.bfloat16)
    memory = Ledger()
    async with child_of(spec_of(folder), memory) as engine:
        if engine.packing is None:
            pytest.skip("this processor has no packed product for bfloat16")
        held = engine.memory_bytes
        assert (await collect(engine.stream(ask(max_tokens=3)))).usage.completion_tokens == 3
        await engine.finish()
        with anyio.fail_after(30):
            while engine.packing is not None:
                await anyio.lowlevel.checkpoint()
        assert (await collect(engine.stream(ask(max_tokens=3)))).usage.completion_tokens == 3
        # What each product took for its time came back, as did the cache.
        assert memory.most > 0
        assert held <= estimate_load(spec_of(folder).files, LoadConfig(), PROCESS) * 1.25
    assert memory.taken == 0


async def open_child(
    tasks: TaskGroup,
    spec: EngineSpec,
    progress: LoadProgress | None = None,
    memory: Memory | None = None,
    limit_bytes: int = 0,
) -> Any:
    return await open_isolated(
        spec,
        progress,
        memory,
        task_group=tasks,
        environment=child_environment(),
        memory_limit_bytes=limit_bytes,
    )


@asynccontextmanager
async def child_of(spec: EngineSpec, memory: Memory | None = None) -> AsyncIterator[Any]:
    """Give a loaded model in a process of its own; at the end no process of it is left."""
    async with anyio.create_task_group() as tasks:
        engine = await open_child(tasks, spec, memory=memory)
        try:
            yield engine
        finally:
            await engine.aclose()
    assert engine.pid not in children()


@asynccontextmanager
async def isolated_house(folder: Path) -> AsyncIterator[House]:
    """A manager whose models live in processes; it is left without one, and without a byte."""
    before = children()
    async with anyio.create_task_group() as tasks:
        opener = partial(open_isolated, task_group=tasks, environment=child_environment())
        async with keeping_house(folder, budget=10**10, open_spec=opener) as house:
            yield house
    assert children() == before


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    """What the shared child takes its memory from."""
    return Ledger()


@pytest.fixture(scope="module")
async def shared(llama_folder: Path, ledger: Ledger) -> AsyncIterator[IsolatedGenerator]:
    """One child for the tests that leave it as it was."""
    async with child_of(spec_of(llama_folder), ledger) as engine:
        yield engine


def children() -> set[int]:
    """Return the processes below this one, zombies too."""
    found: set[int] = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def failure_of(engine: IsolatedGenerator, request: GenerateRequest) -> str:
    with pytest.raises(EngineFailed) as caught:
        await collect(engine.stream(request))
    return caught.value.message


async def load_failure_of(folder: Path, limit_bytes: int = 0) -> ModelLoadFailed:
    async with anyio.create_task_group() as tasks:
        with pytest.raises(ModelLoadFailed) as caught:
            await open_child(tasks, spec_of(folder), limit_bytes=limit_bytes)
    return caught.value


def process_file(engine: Keeper, name: str) -> bytes:
    return Path(f"/proc/{engine.pid}/{name}").read_bytes()


# What one child serves


async def test_a_child_says_what_the_thread_says(
    shared: IsolatedGenerator, llama: LoadedModel, start_engine: StartEngine
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


async def test_sixteen_streams_at_once_say_what_each_says_alone(shared: IsolatedGenerator) -> None:
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


async def test_errors_of_a_request_cross_as_they_are(shared: IsolatedGenerator) -> None:
    with pytest.raises(ContextLengthExceeded, match="1024 tokens") as caught:
        await collect(shared.stream(ask("x" * 1100)))
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequest, match="empty"):
        await collect(shared.stream(GenerateRequest(id="r", model="m", prompt="", raw=True)))
    tool = Tool("f", parameters={"type": "object", "maxProperties": 10**30})
    with pytest.raises(InvalidRequest, match="cannot be told"):
        await collect(shared.stream(msgspec.structs.replace(ask(), tools=(tool,))))
    assert shared.alive


async def test_huge_prompts_are_refused_and_others_are_served(shared: IsolatedGenerator) -> None:
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


async def test_closing_a_stream_returns_when_the_child_has_let_go(
    shared: IsolatedGenerator,
) -> None:
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


async def test_cancelling_a_reader_stops_the_model(shared: IsolatedGenerator) -> None:
    with anyio.CancelScope() as scope:
        async for event in shared.stream(ask(max_tokens=900)):
            if isinstance(event, TextDelta):
                scope.cancel()
    assert scope.cancelled_caught
    assert shared._inboxes == {}


async def test_a_slow_reader_holds_back_its_own_stream_only(shared: IsolatedGenerator) -> None:
    slow = shared.stream(ask(max_tokens=400))
    assert isinstance(await anext(slow), Started)
    for n in range(3):
        quick = await collect(shared.stream(ask(f"another {n}", max_tokens=200)))
        assert quick.usage.completion_tokens == 200
    [inbox] = shared._inboxes.values()
    assert inbox.unread <= WINDOW
    assert not inbox.released.is_set()
    rest = [event async for event in slow]
    assert isinstance(rest[-1], Finished)
    assert rest[-1].usage.completion_tokens == 400


async def test_signals_meant_for_the_gateway_do_not_end_a_child(shared: IsolatedGenerator) -> None:
    stream = shared.stream(ask(max_tokens=300))
    assert isinstance(await anext(stream), Started)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(shared.pid, number)
    rest = [event async for event in stream]
    assert isinstance(rest[-1], Finished)
    assert rest[-1].usage.completion_tokens == 300
    assert os.getsid(shared.pid) == shared.pid != os.getsid(0)


async def test_a_child_tells_what_its_process_takes(shared: IsolatedGenerator) -> None:
    resident = int(process_file(shared, "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert resident / 2 < shared.memory_bytes < resident * 2


async def test_a_child_inherits_no_secret_and_no_file(
    shared: IsolatedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("GATEWAY_DATABASE_URL", "postgresql://u:canary@h/d")
    assert not any("canary" in value for value in child_environment().values())
    names = {line.split(b"=")[0] for line in process_file(shared, "environ").split(b"\0")}
    assert not any(name.startswith((b"GATEWAY_", b"HF_", b"OLLAMA_")) for name in names)
    assert process_file(shared, "oom_score_adj").strip() == b"500"


# Memory


async def test_the_state_of_sequences_takes_its_bytes_of_the_memory_here(
    shared: IsolatedGenerator, ledger: Ledger, llama: LoadedModel, start_engine: StartEngine
) -> None:
    here = Ledger()
    async with start_engine(llama, memory=here) as thread:
        await collect(thread.stream(ask(max_tokens=600)))
    ledger.most = 0
    async with aclosing(shared.stream(ask(max_tokens=600))) as events:
        assert [type(event) async for event in events][-1] is Finished
    assert ledger.most == here.most > 0
    assert ledger.taken == 0


async def test_where_there_is_no_room_here_the_child_gets_none(
    shared: IsolatedGenerator, ledger: Ledger
) -> None:
    ledger.room = 0
    try:
        with pytest.raises(NoRoom):
            await collect(shared.stream(ask(max_tokens=5)))
    finally:
        ledger.room = 2**40
    assert (await collect(shared.stream(ask(max_tokens=2)))).usage.completion_tokens == 2


# Embeddings


async def test_a_child_embeds_as_the_thread_does(tmp_path: Path) -> None:
    build_encoder(tmp_path / "bert", pooling={"pooling_mode_mean_tokens": True})
    loaded = load_embedder("bert", tmp_path / "bert", LoadConfig(device="cpu"))
    words = ["a", "gateway", "embeds", "texts"]
    texts = tuple(" ".join(words[: 1 + n % 4]) for n in range(40))
    request = EmbedRequest("r", "tiny", inputs=texts)
    thread = EmbeddingEngine(REF, loaded, max_queue=4)
    expected = await thread.embed(request)
    await thread.aclose()
    async with child_of(spec_of(tmp_path / "bert", architecture="BertModel")) as engine:
        assert isinstance(engine, IsolatedEmbedder) and isinstance(engine, Embedder)
        assert not isinstance(engine, Generator)
        answer = await engine.embed(request)
        assert answer.usage == expected.usage
        for mine, theirs in zip(answer.vectors, expected.vectors, strict=True):
            assert unpack_vector(mine) == pytest.approx(unpack_vector(theirs), abs=1e-5)
        with pytest.raises(InvalidRequest, match="dimensions"):
            await engine.embed(EmbedRequest("r", "tiny", inputs=texts, dimensions=4000))
        with anyio.move_on_after(0) as scope:
            await engine.embed(request)
        assert scope.cancelled_caught
        assert engine._inboxes == {}
        os.kill(engine.pid, signal.SIGSTOP)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(embed_in_vain, engine, request)
            await anyio.wait_all_tasks_blocked()
            os.kill(engine.pid, signal.SIGKILL)


async def embed_in_vain(engine: IsolatedEmbedder, request: EmbedRequest) -> None:
    with pytest.raises(EngineFailed, match="SIGKILL"):
        await engine.embed(request)


# Loads


async def test_a_load_tells_how_far_it_is_and_what_it_found_out(
    llama_folder: Path, llama: LoadedModel
) -> None:
    progress = LoadProgress()
    async with anyio.create_task_group() as tasks:
        engine = await open_child(tasks, spec_of(llama_folder), progress)
        assert progress.fraction == 1.0
        assert progress.on_cancel is None
        assert engine.recipe == llama.recipe
        assert engine.is_batched == llama.runner.is_batched
        await engine.aclose()


async def test_a_load_that_was_cancelled_before_it_began_starts_no_process(
    llama_folder: Path,
) -> None:
    before, progress = children(), LoadProgress()
    progress.cancel()
    async with anyio.create_task_group() as tasks:
        with pytest.raises(ModelUnloaded):
            await open_child(tasks, spec_of(llama_folder), progress)
        assert children() == before


async def test_a_load_cancelled_while_its_process_starts_ends_it(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, progress = children(), LoadProgress()

    async def start(*arguments: Any) -> Any:
        process = await start_child(*arguments)
        progress.cancel()
        return process

    monkeypatch.setattr(keeper, "start_child", start)
    async with anyio.create_task_group() as tasks:
        with pytest.raises(ModelUnloaded):
            await open_child(tasks, spec_of(llama_folder), progress)
    assert children() == before


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
                openers.start_soon(open_child, tasks, spec_of(llama_folder))
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
    llama_folder: Path, shared: IsolatedGenerator
) -> None:
    failure = await load_failure_of(llama_folder, limit_bytes=150 * 2**20)
    found = re.search(r"may have 157286400 bytes .* take (\d+) of them", failure.message)
    assert found is not None, failure.message
    # Room for nothing but a thread: whatever it is that fails, somebody says so.
    failure = await load_failure_of(llama_folder, limit_bytes=int(found[1]) + 12 * 2**20)
    assert "tiny" in failure.message
    assert (await collect(shared.stream(ask(max_tokens=2)))).usage.completion_tokens == 2


# Deaths


async def test_kill_9_tells_every_reader_at_once_and_leaves_nothing(
    llama_folder: Path,
) -> None:
    files = open_files()
    said: list[str] = []

    async def run(engine: IsolatedGenerator, n: int) -> None:
        said.append(await failure_of(engine, ask(f"{n}", max_tokens=900)))

    async with child_of(spec_of(llama_folder)) as engine:
        running = engine.stream(ask(max_tokens=900))
        assert isinstance(await anext(running), Started)
        async with anyio.create_task_group() as tasks:
            for n in range(12):
                tasks.start_soon(run, engine, n)
            while len(engine._inboxes) < 13:
                await anyio.lowlevel.checkpoint()
            os.kill(engine.pid, signal.SIGKILL)
            with anyio.fail_after(15):
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
    async with child_of(spec_of(llama_folder)) as engine:
        stream = engine.stream(ask(max_tokens=900))
        assert isinstance(await anext(stream), Started)
        monkeypatch.setattr(keeper, "SILENT_BEATS", 1)
        monkeypatch.setattr(keeper, "BEAT_S", 0.2)
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(EngineFailed, match="did not answer for"):
            async for _ in stream:
                pass
        assert not engine.alive


async def test_a_child_that_does_not_end_when_told_is_killed(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "STOP_S", 0.1)
    async with child_of(spec_of(llama_folder)) as engine:
        os.kill(engine.pid, signal.SIGSTOP)
        await engine.aclose()
        assert engine.pid not in children()


async def test_closing_the_engine_ends_its_streams_with_an_error(llama_folder: Path) -> None:
    async with child_of(spec_of(llama_folder)) as engine:
        stream = engine.stream(ask(max_tokens=900))
        assert isinstance(await anext(stream), Started)
        # The child has said all that it may, and its answer waits for a reader who does not read.
        [inbox] = engine._inboxes.values()
        while inbox.unread + inbox._taken < WINDOW:
            await anyio.lowlevel.checkpoint()
        await engine.aclose()
        with pytest.raises(EngineFailed, match=r"stopped|unloaded"):
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
                while not any(isinstance(message, Opened) for message in await link.receive()):
                    pass
                link.post(Ask(1, ask(max_tokens=900)))
                told = 0
                while told < WINDOW:
                    for message in await link.receive():
                        told += isinstance(message, Told)
                        if isinstance(message, Need):
                            link.post(Lent(message.id, granted=True))
                assert told == WINDOW
                # The next thing that comes is the beat of an idle child, and no event.
                assert not any(isinstance(message, Told) for message in await link.receive())
                tasks.cancel_scope.cancel()
        with anyio.fail_after(5):
            assert await process.wait() != 0


# Under the manager


async def test_the_manager_says_that_a_model_died_and_loads_it_anew(llama_folder: Path) -> None:
    async with isolated_house(llama_folder) as house:
        async with house.manager.lease(A, house.files) as engine:
            stream = generator(engine).stream(ask(max_tokens=900))
            assert isinstance(await anext(stream), Started)
            os.kill(generator(engine).pid, signal.SIGKILL)
            with pytest.raises(EngineFailed, match="SIGKILL"):
                async for _ in stream:
                    pass
            state, message = house.manager.state_of(A)
            assert state is ModelState.FAILED
            assert message is not None and "died" in message
        assert await house.use(A)
        assert house.states_of(A) == [
            ModelState.LOADING,
            ModelState.LOADED,
            ModelState.UNLOADING,
            ModelState.FAILED,
            ModelState.LOADING,
            ModelState.LOADED,
        ]


async def test_an_unload_by_force_ends_the_streams_and_the_process(llama_folder: Path) -> None:
    async with isolated_house(llama_folder) as house:
        begun, said = anyio.Semaphore(0), []

        async def read() -> None:
            with pytest.raises(ModelUnloaded) as caught:
                async with house.manager.lease(A, house.files) as engine:
                    async for event in generator(engine).stream(ask(max_tokens=900)):
                        if isinstance(event, Started):
                            begun.release()
            said.append(caught.value.message)

        async with anyio.create_task_group() as readers:
            for _ in range(3):
                readers.start_soon(read)
            for _ in range(3):
                await begun.acquire()
            assert house.used_bytes > house.manager.statuses(A)[0].memory_bytes / 2 > 0
            await house.manager.unload(A, force=True)
            assert house.state_of(A) is ModelState.NOT_LOADED
            assert house.used_bytes == 0
        assert said == ["huggingface/a was unloaded while it answered."] * 3


async def test_a_load_that_is_given_up_ends_its_process_and_the_next_one_works(
    llama_folder: Path,
) -> None:
    before = children()
    async with isolated_house(llama_folder) as house:
        async with anyio.create_task_group() as loads:

            async def load() -> None:
                with pytest.raises(ModelUnloaded, match="cancelled"):
                    await house.manager.load(A, house.files)

            loads.start_soon(load)
            while children() == before:
                await anyio.lowlevel.checkpoint()
            await house.manager.unload(A)
            assert children() == before
        assert house.state_of(A) is ModelState.NOT_LOADED
        assert await house.use(A)


def generator(engine: Engine) -> IsolatedGenerator:
    assert isinstance(engine, IsolatedGenerator)
    return engine
