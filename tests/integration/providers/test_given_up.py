"""F9: how many requests a server is at that goes on with those that were given up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from gateway.core.errors import Overloaded, ProviderTimeout
from gateway.core.events import Finished
from gateway.providers import http1_connection_wire
from gateway.providers.ollama import OllamaService, OllamaTimeouts
from gateway.providers.openai import OpenAIService
from gateway.servers import OpenAIServer
from tests.integration.http.serving import serving
from tests.integration.http.sse_reader import NATIVE
from tests.integration.ollama_peer import Exchange, OllamaPeer, chat_line
from tests.integration.ollama_peer import answer as whole
from tests.integration.providers.ollama_support import REF, ask, read
from tests.scripted_provider import ECHO, ScriptedProvider, answer
from tests.told import stream_of

MOST = 5
CHAT = "/v1/chat/completions"
ANSWER = b"""data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}

data: [DONE]

"""
HEAD = [("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked")]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both kinds of transports."""
    return "asyncio", {"use_uvloop": request.param}


class Deaf:
    """Is at each request until it is `let_go`, whoever leaves; `most` were they at once."""

    def __init__(self, *, begins: bool) -> None:
        self.at_work = 0
        self.most = 0
        self.let_go = asyncio.Event()
        self._begins = begins

    async def __call__(self, exchange: Exchange) -> None:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            if self._begins:
                line = chat_line("a")
                await exchange.head(200, HEAD)
                await exchange.write(b"%x\r\n%b\r\n" % (len(line), line))
            await self.let_go.wait()
        finally:
            self.at_work -= 1


@asynccontextmanager
async def service_before(peer: OllamaPeer) -> AsyncIterator[OllamaService]:
    service = OllamaService(peer.url, OllamaTimeouts(control_s=5.0), max_asked=MOST)
    try:
        with anyio.fail_after(30):
            yield service
    finally:
        await service.aclose()


async def leave(service: OllamaService, peer: OllamaPeer) -> None:
    """Ask, and leave once the request is there and nothing more comes by itself."""
    index = len(peer.requests)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read, service)
        seen = await peer.request(index)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    await seen.until_closed()


@pytest.mark.parametrize("begins", [True, False], ids=["in the answer", "before it"])
async def test_a_server_that_hears_no_abort_is_at_no_more_than_it_may(
    ollama_peer: OllamaPeer, begins: bool
) -> None:
    deaf = Deaf(begins=begins)
    ollama_peer.script("llama3.2", deaf)
    async with service_before(ollama_peer) as service:
        for _ in range(MOST):
            await leave(service, ollama_peer)
        for _ in range(3 * MOST):
            with pytest.raises(Overloaded, match="still at 5 requests"):
                await read(service)
        assert (deaf.at_work, deaf.most) == (MOST, MOST)
        assert service._http.asked == MOST
        deaf.let_go.set()
        while service._http.asked:
            await anyio.lowlevel.checkpoint()
        del ollama_peer._scripts["llama3.2:latest"]
        ollama_peer.add_model("llama3.2")
        assert isinstance((await read(service))[-1], Finished)


async def test_a_server_that_hears_the_abort_is_free_at_once(ollama_peer: OllamaPeer) -> None:
    """As Ollama does it: the handler ends when the client's end is seen."""

    async def hear(exchange: Exchange) -> None:
        await exchange.seen.closed.wait()

    ollama_peer.script("llama3.2", hear)
    async with service_before(ollama_peer) as service:
        for _ in range(3 * MOST):
            await leave(service, ollama_peer)
            while service._http.asked:
                await anyio.lowlevel.checkpoint()


async def test_a_server_that_speaks_on_is_told_by_a_reset(ollama_peer: OllamaPeer) -> None:
    """So one that sees it only when it writes stops, too, and is counted no longer."""
    speak, stopped = asyncio.Event(), asyncio.Event()

    async def speak_on(exchange: Exchange) -> None:
        await exchange.head(200, HEAD)
        await speak.wait()
        while not exchange._writer.transport.is_closing():
            exchange._writer.write(b"1\r\n \r\n")
            await asyncio.sleep(0.01)
        stopped.set()

    ollama_peer.script("llama3.2", speak_on)
    async with service_before(ollama_peer) as service:
        await leave(service, ollama_peer)
        assert service._http.asked == 1
        speak.set()
        await stopped.wait()
        assert service._http.asked == 0


async def test_who_was_silent_for_too_long_is_waited_for_no_more(
    ollama_peer: OllamaPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1_connection_wire, "PART_S", 0.2)
    deaf = Deaf(begins=True)
    ollama_peer.script("llama3.2", deaf)
    async with service_before(ollama_peer) as service:
        await leave(service, ollama_peer)
        assert service._http.asked == 1
        while service._http.asked:
            await anyio.lowlevel.checkpoint()
        assert deaf.at_work == 1
        deaf.let_go.set()


async def test_a_request_that_timed_out_counts_as_one_that_was_given_up(
    ollama_peer: OllamaPeer,
) -> None:
    deaf = Deaf(begins=True)
    ollama_peer.script("llama3.2", deaf)
    timeouts = OllamaTimeouts(idle_s=0.1, control_s=5.0)
    service = OllamaService(ollama_peer.url, timeouts, max_asked=1)
    with anyio.fail_after(20):
        with pytest.raises(ProviderTimeout, match="silent for too long"):
            await read(service)
        with pytest.raises(Overloaded):
            await read(service)
    assert deaf.most == 1
    deaf.let_go.set()
    await service.aclose()


async def test_of_several_urls_another_is_asked(ollama_peer: OllamaPeer) -> None:
    """Those of an OpenAI-compatible server each have their own bound."""
    never = asyncio.Event()

    async def hang(exchange: Exchange) -> None:
        await never.wait()

    async with OllamaPeer() as other:
        ollama_peer.script_route(CHAT, hang)
        other.script_route(CHAT, whole(200, ANSWER, "text/event-stream"))
        server = OpenAIServer(urls=(ollama_peer.url, other.url))
        service = OpenAIService("lab", server, max_asked=1)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hear_out, service)
                await ollama_peer.request()
                tasks.cancel_scope.cancel()
            # It is the other one's turn, and then would be the first one's.
            for _ in range(2):
                await hear_out(service)
            assert len(other.requests) == 2
            other.script_route(CHAT, hang)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hear_out, service)
                await other.request(2)
                tasks.cancel_scope.cancel()
            with pytest.raises(Overloaded, match="lab is still at 1 requests"):
                await hear_out(service)
        assert len(ollama_peer.requests) == 1
        never.set()
        await service.aclose()


async def hear_out(service: OpenAIService) -> None:
    async with aclosing(stream_of(service, ask(), REF)) as events:
        async for _ in events:
            pass


async def test_clients_that_leave_again_and_again_reach_a_deaf_server_in_bounded_numbers(
    ollama_peer: OllamaPeer,
) -> None:
    """Through the whole gateway: who asks another provider does not notice."""
    deaf = Deaf(begins=True)
    ollama_peer.add_model("llama3.2")
    ollama_peer.script("llama3.2", deaf)
    body = {"model": "ollama/llama3.2", "messages": [{"role": "user", "content": "hi"}]}
    refused = 0
    async with (
        service_before(ollama_peer) as service,
        serving(service, ScriptedProvider(answer("hi"))) as served,
    ):
        for _ in range(4 * MOST):
            async with served.client.stream("POST", NATIVE, json=body) as reply:
                refused += reply.status_code == 503
                async for chunk in reply.aiter_raw():
                    if b"event: delta" in chunk:
                        break
        reply = await served.client.post("/api/v1/generate", json=body)
        assert reply.status_code == 503 and int(reply.headers["retry-after"]) >= 1
        reply = await served.client.post("/api/v1/generate", json={**body, "model": str(ECHO)})
        assert reply.status_code == 200
        assert (deaf.most, refused) == (MOST, 3 * MOST)
        deaf.let_go.set()
