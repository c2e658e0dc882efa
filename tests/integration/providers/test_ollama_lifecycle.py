"""Loading, unloading and configuring Ollama's models, against the scripted server."""

from contextlib import aclosing
from datetime import datetime

import anyio
import pytest

from gateway.core.errors import (
    GatewayError,
    ModelNotFound,
    ProviderTimeout,
    ProviderUnavailable,
    UnsupportedCapability,
)
from gateway.core.loading import ConfigChange, LoadConfig
from gateway.core.messages import Options
from gateway.core.models import ModelInfo, ModelStateChange
from gateway.core.names import ModelRef, parse_ref
from gateway.core.states import ModelState
from gateway.providers.ollama import OllamaService
from gateway.providers.ollama_memory_wire import Elsewhere, FindSize, Stay
from tests.integration.ollama_peer import FOREVER, SOON, OllamaPeer
from tests.integration.providers.ollama_support import REF, ask, read, serving

NOBODY = parse_ref("ollama", "nobody")


async def test_a_load_is_a_request_without_a_prompt_and_an_unload_one_with_keep_alive_0(
    ollama_peer: OllamaPeer,
) -> None:
    ollama_peer.add_model("llama3.2")
    async with serving(ollama_peer.url) as service:
        assert await service.status() == []
        await service.load(REF, keep_alive_s=300)
        asked = ollama_peer.seen("/api/generate")[0].body
        assert (asked["model"], asked["prompt"], asked["keep_alive"]) == (
            "llama3.2:latest",
            "",
            300,
        )
        [status] = await service.status(REF)
        assert (status.ref, status.state) == (REF, ModelState.LOADED)
        assert status.memory_bytes > 2_000_000_000
        await service.unload(REF)
        assert ollama_peer.seen("/api/generate")[1].body["keep_alive"] == 0
        assert await service.status(REF) == []
        await service.unload(REF)
        assert len(ollama_peer.seen("/api/generate")) == 2


async def test_the_status_tells_when_a_model_goes(ollama_peer: OllamaPeer) -> None:
    ollama_peer.add_model("llama3.2")
    ollama_peer.add_model("other")
    ollama_peer.load("llama3.2")
    ollama_peer.load("other", FOREVER)
    now = datetime.fromisoformat(SOON[:26] + SOON[-6:]).timestamp() - 100
    service = OllamaService(ollama_peer.url, now=lambda: now)
    try:
        left = {status.ref.model: status.expires_in_s for status in await service.status()}
    finally:
        await service.aclose()
    assert left["llama3.2:latest"] == pytest.approx(100, abs=0.01)
    assert left["other:latest"] is None


async def test_a_plan_tells_what_is_known(ollama_peer: OllamaPeer) -> None:
    ollama_peer.add_model("llama3.2", size=123)
    async with serving(ollama_peer.url) as service:
        await service.models()
        plan = await service.plan(REF)
        assert (plan.need_bytes, plan.fits, plan.already_loaded) == (123, None, False)
        assert plan.reason is not None and not plan.is_too_large
        ollama_peer.load("llama3.2")
        assert (await service.plan(REF)).already_loaded
        assert not (await service.plan(REF, LoadConfig(context_length=8192))).already_loaded
        with pytest.raises(ModelNotFound):
            await service.plan(NOBODY)


async def test_defaults_and_the_context_length_go_with_every_request(
    ollama_peer: OllamaPeer,
) -> None:
    ollama_peer.add_model("llama3.2", context_length=4096)
    async with serving(ollama_peer.url, num_ctx=2048) as service:
        change = ConfigChange(
            load=LoadConfig(context_length=8192), defaults=Options(top_k=3), keep_alive_s=60
        )
        assert not (await service.configure(REF, change)).requires_reload
        await read(service, ask(options=Options(temperature=0.5)))
        sent = ollama_peer.requests[-1].body
        assert sent["options"] == {"temperature": 0.5, "top_k": 3, "num_ctx": 8192}
        assert sent["keep_alive"] == 60
        # The server says that it runs with another context than was asked for.
        assert (await service.config(REF)).requires_reload
        await read(service, ask(keep_alive_s=5), parse_ref("ollama", "LLAMA3.2"))
        assert ollama_peer.requests[-1].body["keep_alive"] == 5
        await service.configure(REF, ConfigChange(load=LoadConfig()))
        await read(service, ask())
        assert ollama_peer.requests[-1].body["options"]["num_ctx"] == 2048


class FullMemory(Elsewhere):
    """In which there is no room before `room` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.room = anyio.Event()

    async def enter(self, ref: ModelRef, find_size: FindSize) -> Stay:
        await self.room.wait()
        return await super().enter(ref, find_size)


async def test_who_waited_for_room_asks_for_the_context_length_that_counts_now(
    ollama_peer: OllamaPeer,
) -> None:
    """Another one than the next request's would have the model loaded twice."""
    ollama_peer.add_model("llama3.2", context_length=4096)
    memory = FullMemory()
    service = OllamaService(ollama_peer.url, num_ctx=2048, memory=memory)
    async with aclosing(service), anyio.create_task_group() as tasks:
        tasks.start_soon(read, service, ask())
        await anyio.wait_all_tasks_blocked()
        await service.configure(REF, ConfigChange(load=LoadConfig(context_length=8192)))
        memory.room.set()
    [chat] = ollama_peer.seen("/api/chat")
    assert chat.body["options"]["num_ctx"] == 8192


@pytest.mark.parametrize("field", ["device", "dtype", "quantization", "pinned", "force"])
async def test_what_ollama_cannot_be_told_is_refused_by_its_name(
    ollama_peer: OllamaPeer, field: str
) -> None:
    ollama_peer.add_model("llama3.2")
    configs = {
        "device": LoadConfig(device="cpu"),
        "dtype": LoadConfig(dtype="float32"),
        "quantization": LoadConfig(quantization="int4"),
    }
    async with serving(ollama_peer.url) as service:
        with pytest.raises(UnsupportedCapability) as caught:
            if field == "force":
                await service.unload(REF, force=True)
            else:
                await service.load(REF, configs.get(field), pinned=field == "pinned")
        assert caught.value.param == field
        assert ollama_peer.seen("/api/generate") == []


async def test_a_load_that_fails_takes_back_what_it_changed_of_the_config(
    ollama_peer: OllamaPeer,
) -> None:
    ollama_peer.add_model("llama3.2")

    async def fail(exchange) -> None:  # type: ignore[no-untyped-def]
        await exchange.error(500, "llama runner process has terminated")

    async with serving(ollama_peer.url) as service:
        await service.configure(REF, ConfigChange(load=LoadConfig(context_length=2048)))
        ollama_peer.script("llama3.2", fail)
        with pytest.raises(GatewayError, match="terminated"):
            await service.load(REF, LoadConfig(context_length=8192))
        assert (await service.config(REF)).config.load.context_length == 2048
        ollama_peer._scripts.clear()
        await service.load(REF, LoadConfig(context_length=4096))
        assert (await service.config(REF)).config.load.context_length == 4096


async def test_what_is_done_to_a_model_here_is_told_and_listed(ollama_peer: OllamaPeer) -> None:
    ollama_peer.add_model("llama3.2", size=123)
    told: list[ModelStateChange] = []
    listed: list[ModelInfo] = []

    async def fail(exchange) -> None:  # type: ignore[no-untyped-def]
        listed.extend(await service.models())
        await exchange.error(500, "no more memory")

    async with serving(ollama_peer.url, observe=told.append) as service:
        await service.models()
        await service.load(parse_ref("ollama", "LLAMA3.2"))
        await service.load(REF, keep_alive_s=9)  # it is there: nothing is to be told
        await service.unload(REF)
        assert [change.state for change in told] == ["LOADING", "LOADED", "UNLOADING", "NOT_LOADED"]
        assert {(change.ref, change.size_bytes) for change in told} == {(REF, 123)}
        told.clear()
        ollama_peer.script("llama3.2", fail)
        with pytest.raises(GatewayError):
            await service.load(REF)
        assert [change.state for change in told] == ["LOADING", "FAILED"]
        assert told[-1].message is not None and "no more memory" in told[-1].message
        # A listing in between undoes nothing of it, until it is over or somebody clears it.
        assert [info.state for info in listed] == ["LOADING"]
        [failed] = await service.models()
        assert (failed.state, failed.message) == ("FAILED", told[-1].message)
        ollama_peer.load("llama3.2")
        assert [info.state for info in await service.models()] == ["LOADED"]
        ollama_peer.loaded.clear()
        await service.unload(REF)
        assert told[-1].state is ModelState.NOT_LOADED
        assert [info.state for info in await service.models()] == ["NOT_LOADED"]


async def test_a_load_that_is_given_up_or_finds_no_model_leaves_no_state_behind(
    ollama_peer: OllamaPeer,
) -> None:
    ollama_peer.add_model("llama3.2")
    told: list[ModelStateChange] = []
    begun = anyio.Event()

    async def hang(exchange) -> None:  # type: ignore[no-untyped-def]
        begun.set()
        await anyio.sleep_forever()

    ollama_peer.script("llama3.2", hang)
    async with serving(ollama_peer.url, observe=told.append) as service:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.load, REF)
            await begun.wait()
            tasks.cancel_scope.cancel()
        with pytest.raises(ModelNotFound):
            await service.load(NOBODY)
        assert [change.state for change in told] == ["LOADING", "NOT_LOADED"] * 2
        assert [info.state for info in await service.models()] == ["NOT_LOADED"]


async def test_an_unload_that_never_ends_is_told_so(ollama_peer: OllamaPeer) -> None:
    ollama_peer.add_model("llama3.2")
    ollama_peer.load("llama3.2")

    async def still_busy(exchange) -> None:  # type: ignore[no-untyped-def]
        await exchange.json(200, {"model": "llama3.2", "done": True, "done_reason": "unload"})

    ollama_peer.script("llama3.2", still_busy)
    async with serving(ollama_peer.url, first_byte_s=0.5) as service:
        with pytest.raises(ProviderTimeout, match="still uses"):
            await service.unload(REF)


async def test_a_server_that_is_away_is_told_by_every_call(ollama_peer: OllamaPeer) -> None:
    async with serving(ollama_peer.url) as service:
        await ollama_peer.stop()
        errors: list[GatewayError] = []
        for call in (
            service.load(REF),
            service.unload(REF),
            service.plan(REF),
            service.status(),
            service.config(REF),
            service.configure(REF, ConfigChange()),
        ):
            try:
                with anyio.fail_after(5):
                    await call
            except GatewayError as error:
                errors.append(error)
        assert [type(error) for error in errors] == [ProviderUnavailable] * 6
