"""HuggingFaceService over GGUF files: what it lists, and what a request for one gets."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
import pytest

from gateway.core.errors import ModelLoadFailed
from gateway.core.models import Capability, ModelInfo
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.engine.llama_cpp import loader
from gateway.hub.cache import FileLibrary
from gateway.problems import describe
from gateway.providers import ProviderContext, load
from gateway.providers.huggingface import HuggingFaceService
from gateway.settings import Settings
from tests.gguf_bytes import write_gguf
from tests.integration.engine.conftest import ask
from tests.tiny_gguf import build_gguf
from tests.told import collect, stream_of

SAID = "GGUF files need llama.cpp, which is not installed."


@asynccontextmanager
async def serving(folder: Path, **settings: int) -> AsyncIterator[HuggingFaceService]:
    async with anyio.create_task_group() as tasks:
        context = ProviderContext(
            library=FileLibrary(folder, folder / "hub"),
            observe=lambda change: None,
            task_group=tasks,
            clock=anyio.current_time,
        )
        service = load("huggingface")(Settings(hf_device="cpu", **settings), context)
        assert isinstance(service, HuggingFaceService)
        yield service
        await service.aclose()


@pytest.fixture
def llama_cpp() -> None:
    pytest.importorskip("llama_cpp", reason="the extra gguf is not installed")
    pytest.importorskip("gguf", reason="the package gguf is not installed")


async def only_model(service: HuggingFaceService) -> ModelInfo:
    [model] = await service.models()
    return model


async def test_without_llama_cpp_a_file_is_listed_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    (tmp_path / "x-Q4_K_M.gguf").write_bytes(write_gguf())
    async with serving(tmp_path) as service:
        model = await only_model(service)
        assert (model.id, model.state) == ("huggingface/x-Q4_K_M", ModelState.NOT_LOADED)
        assert model.message is not None
        assert model.message.startswith(SAID) and "model-gateway[gguf]" in model.message
        with pytest.raises(ModelLoadFailed) as refused:
            await collect(stream_of(service, ask(), model.ref))
    problem = describe(refused.value)
    assert (problem.message, problem.code) == (SAID, "model_load_failed")
    assert problem.hint is not None and "model-gateway[gguf]" in problem.hint


async def test_a_listing_tells_format_quantization_and_the_context_that_is_set_aside(
    tmp_path: Path,
) -> None:
    (tmp_path / "x.gguf").write_bytes(write_gguf())
    async with serving(tmp_path, gguf_context_length=512) as service:
        model = await only_model(service)
    facts = dict(model.metadata)
    assert (facts["format"], facts["quantization"]) == ("gguf", "Q4_K_M")
    assert (facts["architecture"], facts["source"]) == ("llama", "local")
    assert model.context_length == 512
    assert {Capability.CHAT, Capability.COMPLETION} <= set(model.capabilities)


async def test_a_damaged_file_is_refused_before_room_is_made_for_it(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(write_gguf()[:200])
    async with serving(tmp_path) as service:
        model = await only_model(service)
        assert model.message is not None and "is cut off" in model.message
        with pytest.raises(ModelLoadFailed, match="is cut off"):
            await collect(stream_of(service, ask(), model.ref))
        assert (await only_model(service)).state is ModelState.NOT_LOADED


@pytest.mark.gguf
@pytest.mark.usefixtures("llama_cpp")
async def test_a_file_answers_like_any_other_model(llama_folder: Path, tmp_path: Path) -> None:
    build_gguf(tmp_path / "own/tiny-Q8_0.gguf", llama_folder, quantization="Q8_0")
    ref = ModelRef("huggingface", "own/tiny-Q8_0")
    async with serving(tmp_path, gguf_context_length=256, hf_max_active=2) as service:
        answer = await collect(stream_of(service, ask(max_tokens=5), ref))
        [resident] = await service.resident()
        model = await only_model(service)
    assert answer.usage.completion_tokens == 5
    assert resident.ref == ref
    assert resident.memory_bytes > (model.size_bytes or 0) // 2
    assert model.state is ModelState.LOADED
    assert model.message is None


@pytest.mark.gguf
@pytest.mark.usefixtures("llama_cpp")
async def test_a_repository_and_its_tag_share_one_copy(llama_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub/models--o--m/snapshots/c0ffee"
    build_gguf(snapshot / "m-Q8_0.gguf", llama_folder, quantization="Q8_0")
    async with serving(tmp_path, gguf_context_length=256) as service:
        for name in ("o/m", "o/m:Q8_0", "o/m:q8_0"):
            await collect(stream_of(service, ask(max_tokens=1), ModelRef("huggingface", name)))
        assert [str(one.ref) for one in await service.resident()] == ["huggingface/o/m:Q8_0"]


@pytest.mark.gguf
@pytest.mark.usefixtures("llama_cpp")
async def test_a_file_is_tried_once_until_it_changes(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    try_load = loader.try_load

    def watch(path: Path, size_bytes: int) -> None:
        tried.append(size_bytes)
        try_load(path, size_bytes)

    monkeypatch.setattr(loader, "try_load", watch)
    ref = ModelRef("huggingface", "tiny")
    file = build_gguf(tmp_path / "tiny.gguf", llama_folder)
    sizes = [file.stat().st_size]
    async with serving(tmp_path) as service:
        for keep_alive_s in (0.0, None):
            request = msgspec.structs.replace(ask(max_tokens=1), keep_alive_s=keep_alive_s)
            await collect(stream_of(service, request, ref))
            while keep_alive_s == 0.0 and await service.resident():
                await anyio.lowlevel.checkpoint()
        build_gguf(file, llama_folder, quantization="Q8_0")
        sizes.append(file.stat().st_size)
        await collect(stream_of(service, ask(max_tokens=1), ref))
    assert tried == sizes
