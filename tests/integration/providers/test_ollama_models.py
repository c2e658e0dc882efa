"""What Ollama has: listings, residency and versions, and what the listings are used for."""

import asyncio
import gzip
import json
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from gateway.core.errors import (
    EngineFailed,
    GatewayError,
    ProviderError,
    ProviderProtocolError,
    ProviderTimeout,
    ProviderUnavailable,
    UnsupportedCapability,
)
from gateway.core.events import Finished
from gateway.core.messages import Tool
from gateway.core.models import Capability
from gateway.core.names import ModelRef, parse_ref
from gateway.core.states import ModelState
from gateway.providers.ollama import OllamaService
from gateway.providers.ollama_control_wire import ControlPlane
from tests.integration.ollama_peer import (
    FOREVER,
    Do,
    Exchange,
    OllamaPeer,
    answer,
    chat_end,
    chunks,
    line,
    raw,
)
from tests.integration.providers.ollama_support import ask, read, read_all, say, serving

TEXT = (Capability.CHAT, Capability.COMPLETION)

LISTINGS: list[Callable[[OllamaService], Awaitable[object]]] = [
    OllamaService.models,
    OllamaService.resident,
    OllamaService.version,
]


async def test_the_listing_tells_names_states_sizes_and_capabilities(
    ollama_peer: OllamaPeer,
) -> None:
    """T12, T15"""
    ollama_peer.add_model("llama3.2", capabilities=["completion", "tools", "novel"], size=5)
    ollama_peer.add_model("registry.ollama.ai/bob/llava:7b", capabilities=["completion", "vision"])
    ollama_peer.add_model("nomic-embed-text", capabilities=["embedding"], context_length=2048)
    ollama_peer.load("llama3.2")
    async with serving(ollama_peer.url) as service:
        llama, llava, nomic = await service.models()
    assert llama.ref == ModelRef("ollama", "llama3.2:latest")
    assert llama.state is ModelState.LOADED
    assert llama.size_bytes == 5
    assert llama.context_length == 4096, "a loaded model's own context"
    assert llama.capabilities == (*TEXT, Capability.TOOLS, Capability.STRUCTURED)
    facts = dict(llama.metadata)
    assert facts["family"] == "llama"
    assert facts["parameter_size"] == "3.2B"
    assert facts["quantization_level"] == "Q4_K_M"
    assert facts["format"] == "gguf"
    assert len(facts["digest"]) == 64
    assert facts["modified_at"] == "2026-11-20T10:11:12.123456+00:00"
    assert facts["memory_bytes"] == "1000005"
    assert llava.ref == ModelRef("ollama", "bob/llava:7b")
    assert llava.state is ModelState.NOT_LOADED
    assert llava.context_length == 131072
    assert llava.capabilities == (*TEXT, Capability.VISION, Capability.STRUCTURED)
    assert nomic.capabilities == (Capability.EMBEDDING,)
    assert ollama_peer.seen("/api/show") == [], "the listing said everything"


async def test_nothing_installed_is_an_empty_listing(ollama_peer: OllamaPeer) -> None:
    """T12"""
    async with serving(ollama_peer.url) as service:
        assert await service.models() == []
        ollama_peer.script_route("/api/tags", answer(200, b'{"models":null}'))
        assert await service.models() == []


async def test_nanoseconds_and_the_year_2318_are_read(ollama_peer: OllamaPeer) -> None:
    """T12"""
    ollama_peer.add_model("llama3.2", size=5)
    ollama_peer.load("llama3.2", FOREVER)
    async with serving(ollama_peer.url) as service:
        (info,) = await service.models()
        (resident,) = await service.resident()
    assert dict(info.metadata)["expires_at"] == "2318-03-01T12:34:56.123456+00:00"
    assert resident.ref == info.ref
    assert resident.memory_bytes == 1_000_005
    assert resident.expires_at is not None
    assert datetime.fromtimestamp(resident.expires_at, UTC).year == 2318


async def test_the_zero_time_is_no_expiry(ollama_peer: OllamaPeer) -> None:
    """T12: Go's zero time is before every Unix time."""
    ollama_peer.add_model("llama3.2")
    ollama_peer.load("llama3.2", "0001-01-01T00:00:00Z")
    async with serving(ollama_peer.url) as service:
        (resident,) = await service.resident()
    assert resident.expires_at is None


@pytest.mark.parametrize(
    "listed", ["llama3.2:latest", "LLAMA3.2:LATEST", "registry.ollama.ai/library/llama3.2:latest"]
)
async def test_names_in_listings_are_normalised_before_they_meet(
    ollama_peer: OllamaPeer, listed: str
) -> None:
    """T15"""
    ollama_peer.script_route("/api/tags", answer(200, line(models=[{"name": listed}])))
    running = [{"model": "Llama3.2", "size": 3, "expires_at": FOREVER}]
    ollama_peer.script_route("/api/ps", answer(200, line(models=running)))
    async with serving(ollama_peer.url) as service:
        (info,) = await service.models()
    assert info.ref.model.lower() == "llama3.2:latest"
    assert info.state is ModelState.LOADED


async def test_every_spelling_asks_for_the_same_model(ollama_peer: OllamaPeer) -> None:
    """T15"""
    ollama_peer.add_model("llama3.2")
    spellings = ["llama3.2", "llama3.2:latest", "registry.ollama.ai/library/llama3.2:latest"]
    async with serving(ollama_peer.url) as service:
        for name in spellings:
            assert isinstance((await read(service, ref=parse_ref("ollama", name)))[-1], Finished)
    assert {seen.body["model"] for seen in ollama_peer.requests} == {"llama3.2:latest"}


async def test_one_illegal_name_does_not_hide_the_others(ollama_peer: OllamaPeer) -> None:
    """T15"""
    names = [{"name": "../../etc"}, {"name": None}, {"name": "good:1"}]
    ollama_peer.script_route("/api/tags", answer(200, line(models=names)))
    async with serving(ollama_peer.url) as service:
        assert [info.ref.model for info in await service.models()] == ["good:1"]


async def test_older_servers_are_asked_once_for_each_digest(ollama_peer: OllamaPeer) -> None:
    """T12"""
    ollama_peer.add_model("old", capabilities=["completion", "insert"], legacy=True)
    ollama_peer.add_model("older", capabilities=None)
    async with serving(ollama_peer.url) as service:
        first, second = await service.models(), await service.models()
        assert len(ollama_peer.seen("/api/show")) == 2
        digest = ollama_peer.models["old:latest"].digest
        ollama_peer.add_model("old", capabilities=["completion"], legacy=True).digest = "b" * 64
        (changed, _) = await service.models()
        assert len(ollama_peer.seen("/api/show")) == 3
        ollama_peer.models["old:latest"].digest = digest
        await service.models()
    assert first == second
    old, older = first
    assert old.capabilities == (*TEXT, Capability.INSERT, Capability.STRUCTURED)
    assert old.context_length == 131072
    assert older.capabilities == (), "unknown, so trusted"
    assert Capability.INSERT not in changed.capabilities
    assert len(ollama_peer.seen("/api/show")) == 4, "what is gone is forgotten"


async def test_looking_at_models_is_bounded_in_time_and_number(ollama_peer: OllamaPeer) -> None:
    """T12: the listing comes in time, and what was learnt by then stays."""
    for number in range(20):
        ollama_peer.add_model(f"old{number}", capabilities=["completion"], legacy=True)
    asked: list[Exchange] = []

    async def show(exchange: Exchange) -> None:
        asked.append(exchange)
        if len(asked) == 1:
            return await answer(200, line(model_info={}, capabilities=["completion"]))(exchange)
        await asyncio.Event().wait()

    ollama_peer.script_route("/api/show", show)
    async with serving(ollama_peer.url, control_s=1.5) as service:
        infos = await service.models()
    assert len(infos) == 20
    assert sum(bool(info.capabilities) for info in infos) == 1
    assert len(asked) == 5, "four at a time, and one more for the one that answered"


async def test_a_model_that_cannot_be_looked_at_is_listed(ollama_peer: OllamaPeer) -> None:
    """T12"""
    ollama_peer.add_model("old", legacy=True)
    ollama_peer.script_route("/api/show", answer(500, line(error="broken")))
    async with serving(ollama_peer.url) as service:
        (info,) = await service.models()
    assert info.capabilities == ()


async def test_what_a_listed_model_cannot_do_is_not_sent(ollama_peer: OllamaPeer) -> None:
    """T16"""
    ollama_peer.add_model("llama3.2", capabilities=["completion"])
    ollama_peer.add_model("nomic", capabilities=["embedding"])
    plain, embedding = parse_ref("ollama", "LLAMA3.2"), parse_ref("ollama", "nomic")
    refused = [
        (ask(think=True), plain),
        (ask(think="low"), plain),
        (ask(tools=(Tool("f"),)), plain),
        (ask(messages=(say("user", "x", images=(b"png",)),)), plain),
        (ask(), embedding),
    ]
    async with serving(ollama_peer.url) as service:
        await service.models()
        for request, ref in refused:
            _, error = await read_all(service, request, ref)
            assert isinstance(error, UnsupportedCapability)
        assert ollama_peer.seen("/api/chat") == []
        await read(service, ask(think=False), plain)


async def test_tools_that_must_not_be_called_are_not_sent(ollama_peer: OllamaPeer) -> None:
    """T16: Ollama has no tool_choice."""
    ollama_peer.script("llama3.2", chunks([chat_end()]))
    tools = (Tool("f"), Tool("g"))
    async with serving(ollama_peer.url) as service:
        for choice in (None, "auto", "required", "g", "none"):
            await read(service, ask(tools=tools, tool_choice=choice))
    sent = [
        [tool["function"]["name"] for tool in seen.body.get("tools", [])]
        for seen in ollama_peer.requests
    ]
    assert sent == [["f", "g"], ["f", "g"], ["f", "g"], ["g"], []]


@pytest.mark.parametrize("listing", LISTINGS)
@pytest.mark.parametrize(
    "body",
    [b"rubbish", b"[]", b"3", b"{}", b'{"models":3,"version":3}', b"\xff", b"<html>", b"[" * 99999],
)
async def test_listings_that_are_rubbish_are_protocol_errors(
    ollama_peer: OllamaPeer, listing: Callable[[OllamaService], Awaitable[object]], body: bytes
) -> None:
    """T7"""
    for path in ("/api/tags", "/api/ps", "/api/version"):
        ollama_peer.script_route(path, answer(200, body))
    async with serving(ollama_peer.url) as service:
        with pytest.raises(ProviderProtocolError):
            await listing(service)


@pytest.mark.parametrize("listing", LISTINGS)
@pytest.mark.parametrize(
    "status, body, kind",
    [
        (404, b"404 page not found", ProviderProtocolError),
        (403, b"", ProviderError),
        (500, b'{"error":"boom"}', EngineFailed),
        (500, b'["boom"]', ProviderProtocolError),
        (307, b"", ProviderProtocolError),
        (502, b"<html>", ProviderUnavailable),
    ],
)
async def test_listings_that_fail_give_our_errors(
    ollama_peer: OllamaPeer,
    listing: Callable[[OllamaService], Awaitable[object]],
    status: int,
    body: bytes,
    kind: type[GatewayError],
) -> None:
    """T7"""
    script = answer(status, body, headers=[("Location", "http://127.0.0.1:1/")])
    for path in ("/api/tags", "/api/ps", "/api/version"):
        ollama_peer.script_route(path, script)
    async with serving(ollama_peer.url) as service:
        with pytest.raises(kind):
            await listing(service)


async def test_one_half_of_the_listing_failing_fails_it_at_once(ollama_peer: OllamaPeer) -> None:
    """T7: the other half is not waited for."""
    for broken, hanging in (("/api/tags", "/api/ps"), ("/api/ps", "/api/tags")):
        ollama_peer.script_route(broken, answer(500, b'{"error":"boom"}'))
        ollama_peer.script_route(hanging, raw([asyncio.Event()]))
        async with serving(ollama_peer.url, control_s=300.0) as service:
            with pytest.raises(EngineFailed):
                await service.models()


@pytest.mark.parametrize("listing", LISTINGS)
async def test_a_server_that_hangs_times_out(
    ollama_peer: OllamaPeer, listing: Callable[[OllamaService], Awaitable[object]]
) -> None:
    """F2: however the silence falls."""
    for steps in ([asyncio.Event()], [b"HTTP/1.1 200 OK\r\n", asyncio.Event()]):
        for path in ("/api/tags", "/api/ps", "/api/version"):
            ollama_peer.script_route(path, raw(steps))
        async with serving(ollama_peer.url, control_s=0.05) as service:
            with pytest.raises(ProviderTimeout):
                await listing(service)


@pytest.mark.parametrize("listing", LISTINGS)
async def test_a_server_that_is_not_there_is_unavailable(
    ollama_peer: OllamaPeer, listing: Callable[[OllamaService], Awaitable[object]]
) -> None:
    """F1, F8: and is found again when it is back."""
    ollama_peer.add_model("llama3.2")
    async with serving(ollama_peer.url) as service:
        await service.models()
        await ollama_peer.stop()
        with pytest.raises(ProviderUnavailable):
            await listing(service)
        _, error = await read_all(service)
        assert isinstance(error, ProviderUnavailable)
        await ollama_peer.restart()
        await listing(service)
        await read(service)


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET])
async def test_a_connection_that_breaks_is_unavailable(ollama_peer: OllamaPeer, end: Do) -> None:
    """F3"""
    ollama_peer.script_route("/api/tags", raw([b"HTTP/1.1 200 OK\r\nContent-Le", end]))
    async with serving(ollama_peer.url) as service:
        with pytest.raises(ProviderUnavailable):
            await service.models()


async def test_a_compressed_listing_is_refused_unread(ollama_peer: OllamaPeer) -> None:
    """F6"""
    bomb = gzip.compress(json.dumps({"models": [], "x": "x" * 20_000_000}).encode())
    ollama_peer.script_route("/api/tags", answer(200, bomb, headers=[("Content-Encoding", "gzip")]))
    async with serving(ollama_peer.url) as service:
        with pytest.raises(ProviderProtocolError, match="compressed"):
            await service.models()


async def test_an_endless_listing_is_refused(
    ollama_peer: OllamaPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F6"""
    monkeypatch.setattr("gateway.providers.ollama_control_wire._MAX_BYTES", 100_000)
    ollama_peer.script_route("/api/tags", chunks([b" " * 50_000] * 3 + [asyncio.Event()]))
    async with serving(ollama_peer.url, control_s=300.0) as service:
        with pytest.raises(ProviderProtocolError, match="too long"):
            await service.models()


async def test_no_key_of_the_environment_is_sent(
    ollama_peer: OllamaPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package would add OLLAMA_API_KEY to requests to any host."""
    monkeypatch.setenv("OLLAMA_API_KEY", "canary")
    ollama_peer.add_model("llama3.2")
    async with serving(ollama_peer.url) as service:
        await service.models()
        await read(service)
    assert all("authorization" not in seen.headers for seen in ollama_peer.requests)


@pytest.mark.parametrize(
    "url, loads",
    [("http://127.0.0.1:1", 0), ("https://127.0.0.1:1", 1), ("HTTPS://127.0.0.1:1", 1)],
)
async def test_certificates_are_loaded_only_for_a_server_with_tls(
    url: str, loads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    create = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda **k: loaded.append(k) or create(**k))
    control = ControlPlane(url, timeout_s=1)
    await control.aclose()
    assert len(loaded) == loads
