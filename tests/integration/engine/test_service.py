"""HuggingFaceService over a real library: which files a name stands for, and what is shared."""

import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from gateway.core.errors import ModelNotFound
from gateway.core.events import Started, Waiting
from gateway.core.loading import ConfigChange, LoadConfig
from gateway.core.models import LocalModel, ModelStateChange
from gateway.core.names import ModelRef, parse_ref
from gateway.core.states import ModelState
from gateway.hub.cache import FileLibrary
from gateway.providers import ProviderContext, load
from gateway.providers.huggingface import HuggingFaceService
from gateway.settings import Settings
from tests.integration.engine.conftest import ask
from tests.tiny_models import build_model
from tests.told import collect, stream_of

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path: Path, llama_folder: Path) -> Path:
    """A Hub cache with `own/m`: the branch main at one commit, and another commit."""
    repository = tmp_path / "hub/models--own--m"
    for commit in (COMMIT, OTHER):
        shutil.copytree(llama_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    return tmp_path / "hub"


OpenService = Callable[..., AbstractAsyncContextManager[HuggingFaceService]]


@pytest.fixture
def open_service(tmp_path: Path, hub: Path) -> OpenService:
    @asynccontextmanager
    async def open_(
        changes: list[ModelStateChange], library: type[FileLibrary] = FileLibrary
    ) -> AsyncIterator[HuggingFaceService]:
        async with anyio.create_task_group() as tasks:
            context = ProviderContext(
                library=library(tmp_path / "models", hub),
                observe=changes.append,
                task_group=tasks,
                clock=anyio.current_time,
            )
            service = load("huggingface")(Settings(hf_device="cpu"), context)
            assert isinstance(service, HuggingFaceService)
            yield service
            await service.aclose()

    return open_


async def test_names_of_one_commit_share_one_copy_and_another_commit_has_its_own(
    open_service: OpenService,
) -> None:
    changes: list[ModelStateChange] = []
    async with open_service(changes) as service:
        for revision in (None, "main", COMMIT, OTHER):
            ref = ModelRef("huggingface", "own/m", revision)
            await collect(stream_of(service, ask(max_tokens=1), ref))
        resident = {str(model.ref) for model in await service.resident()}
    assert resident == {"huggingface/own/m", f"huggingface/own/m@{OTHER}"}
    assert [c.state for c in changes].count(ModelState.LOADING) == 2


async def test_the_wait_for_a_load_is_told_and_measured(open_service: OpenService) -> None:
    ref = ModelRef("huggingface", "own/m")
    async with open_service([]) as service:
        events = [event async for event in stream_of(service, ask(max_tokens=1), ref)]
        assert events[0] == Waiting("loading")
        [started] = [event for event in events if isinstance(event, Started)]
        assert started.load_ms > 0
        again = [event async for event in stream_of(service, ask(max_tokens=1), ref)]
    assert Waiting("loading") not in again


async def test_while_a_look_at_the_files_takes_long_the_last_one_counts(
    open_service: OpenService,
) -> None:
    is_slow, may_go_on = threading.Event(), threading.Event()

    class SlowLibrary(FileLibrary):
        def scan(self) -> Sequence[LocalModel]:
            if is_slow.is_set():
                may_go_on.wait(30)
            return super().scan()

    async with open_service([], SlowLibrary) as service:
        before = await service.models()
        is_slow.set()
        try:
            with anyio.fail_after(20):
                assert await service.models() == before != []
        finally:
            may_go_on.set()


async def test_a_model_that_is_not_there_is_not_found(open_service: OpenService) -> None:
    async with open_service([]) as service:
        with pytest.raises(ModelNotFound):
            await collect(stream_of(service, ask(), ModelRef("huggingface", "own/other")))


@pytest.fixture
def torn_hub(hub: Path) -> Path:
    for config in hub.rglob("config.json"):
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 48}))
    return hub


@pytest.mark.usefixtures("torn_hub")
async def test_a_listing_shows_state_card_and_failure(open_service: OpenService) -> None:
    ref = ModelRef("huggingface", "own/m")
    async with open_service([]) as service:
        [before] = await service.models()
        with pytest.raises(Exception, match="could not be loaded"):
            await collect(stream_of(service, ask(), ref))
        [after] = await service.models()
    assert (before.state, before.context_length) == (ModelState.NOT_LOADED, 1024)
    assert dict(before.metadata)["revision"] == COMMIT
    assert after.state is ModelState.FAILED
    assert after.message is not None and "could not be loaded" in after.message


async def test_a_listing_tells_who_answers_one_at_a_time_once_a_load_found_it_out(
    open_service: OpenService, tmp_path: Path
) -> None:
    build_model(tmp_path / "models/serial", family="mamba", state_size=4)
    names = [ModelRef("huggingface", "own/m"), ModelRef("huggingface", "serial")]

    async def listed(service: HuggingFaceService) -> list[bool | None]:
        found = {info.ref: info.batched for info in await service.models()}
        return [found[name] for name in names]

    async with open_service([]) as service:
        assert await listed(service) == [None, None]
        for name in names:
            await service.load(name)
        assert await listed(service) == [True, False]
        for name in names:
            await service.unload(name)
        assert await listed(service) == [True, False]
        # Loaded in another way it may be another thing.
        await service.configure(names[0], ConfigChange(load=LoadConfig(dtype="bfloat16")))
        assert await listed(service) == [None, False]


@pytest.mark.parametrize("name", ["own/m", f"own/m@{COMMIT}"])
async def test_a_model_whose_files_went_away_can_be_unloaded(
    open_service: OpenService, hub: Path, name: str
) -> None:
    ref = parse_ref("huggingface", name)
    async with open_service([]) as service:
        await service.load(ref, pinned=True)
        shutil.rmtree(hub / "models--own--m")
        report = await service.config(ref)
        assert report.config.pinned
        [status] = await service.status(report.ref)
        assert status.state is ModelState.LOADED
        await service.unload(ref)
        assert await service.resident() == []


async def test_what_was_never_there_is_still_not_found(open_service: OpenService) -> None:
    ref = ModelRef("huggingface", "own/other")
    async with open_service([]) as service:
        with pytest.raises(ModelNotFound):
            await service.unload(ref)
        with pytest.raises(ModelNotFound):
            await service.config(ref)


async def test_a_preload_waits_until_what_was_decided_holds_again(
    tmp_path: Path, hub: Path
) -> None:
    changes: list[ModelStateChange] = []
    restored = anyio.Event()
    ref = ModelRef("huggingface", "own/m")
    async with anyio.create_task_group() as tasks:
        context = ProviderContext(
            library=FileLibrary(tmp_path / "models", hub),
            observe=changes.append,
            task_group=tasks,
            clock=anyio.current_time,
            configured=restored.wait,
        )
        service = load("huggingface")(Settings(hf_device="cpu", hf_preload=("own/m",)), context)
        for _ in range(100):  # as far as it comes
            await anyio.lowlevel.checkpoint()
        await service.configure(ref, ConfigChange(load=LoadConfig("cpu", "float16")))
        assert changes == []
        restored.set()
        with anyio.fail_after(60):
            while ModelState.LOADED not in [change.state for change in changes]:
                await anyio.lowlevel.checkpoint()
        [status] = await service.status(ref)
        await service.aclose()
    assert not status.requires_reload and status.config.load.dtype == "float16"
    assert [change.state for change in changes[:2]] == [ModelState.LOADING, ModelState.LOADED]
