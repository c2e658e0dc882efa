"""Answers that go by themselves from socket to socket end as those do that a task runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from gateway.core.errors import (
    ContextLengthExceeded,
    ProviderTimeout,
)
from gateway.core.events import Event, Finished, Started, TextDelta
from gateway.core.ports import Eager
from gateway.core.telling import Wait
from gateway.providers.ollama import OllamaService
from tests.begun import Begun, Outcome, outcome
from tests.integration.ollama_peer import (
    Do,
    OllamaPeer,
    Script,
    Seen,
    Step,
    answer,
    chat_end,
    chat_line,
    chunks,
    line,
    raw,
    tool_call,
)
from tests.integration.providers.ollama_support import REF, ask, read, read_all, serving

WHOLE = answer(200, chat_line("warm") + chat_end())
HEAD = b"HTTP/1.1 200 OK\r\nDate: x\r\n"
A, B = line(message={"content": "a"}), line(message={"content": "b"})
END = line(done=True)
BODY = (
    line(message={"thinking": "Hm"})
    + line(message={"content": "ü🦙"})
    + line(message={"tool_calls": [tool_call("f", {"z": 1})]})
    + END
)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both kinds of transports."""
    return "asyncio", {"use_uvloop": request.param}


def chunked(body: bytes, head: bytes = HEAD) -> bytes:
    parts = (b"%x\r\n%b\n\r\n" % (len(part) + 1, part) for part in body.splitlines())
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(parts) + b"0\r\n\r\n"


def sized(status: int, body: bytes, headers: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 %d X\r\n%b%b\r\n%b" % (status, length, headers, body)


RECORDED = {
    "chunked": chunked(BODY),
    "until close": HEAD + b"Connection: close\r\n\r\n" + BODY,
    "one length": sized(200, BODY),
    "announced": b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + sized(200, A + END),
    "no line end": sized(200, (A + END).rstrip()),
    "no end": chunked(A + B),
    "an error in a line": chunked(A + b'{"error":"CUDA error"}\n'),
    "an error at once": chunked(b'{"error":"CUDA error"}\n'),
    "rubbish": chunked(A + b"rubbish\n" + END),
    "rubbish for a chunk": chunked(A)[:-5] + b"rubbish\r\n",
    "rubbish for a head": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "more than asked": chunked(A + END) + b"HTTP/1.1 200",
    "not found": sized(404, b'{"error":"model not found"}'),
    "broken": sized(500, b'{"error":"llama runner terminated"}'),
    "busy": sized(503, b'{"error":"server busy"}', b"Retry-After: 7\r\n"),
    "encoded": sized(200, BODY, b"Content-Encoding: gzip\r\n"),
}


@asynccontextmanager
async def warm(peer: OllamaPeer, **settings: float) -> AsyncIterator[OllamaService]:
    """A service whose connections are kept."""
    async with serving(peer.url, patience_s=120.0, **settings) as service:
        yield service


async def begin(service: OllamaService, peer: OllamaPeer, steps: Sequence[Step]) -> Begun:
    """Begin an answer of those `steps` on a connection that is kept."""
    await keep_one(service, peer)
    peer.script("llama3.2", raw(steps))
    return Begun().begin(service, ask(), REF)


async def keep_one(service: OllamaService, peer: OllamaPeer) -> None:
    """Have a connection that serves again."""
    peer.script("llama3.2", WHOLE)
    await read(service)
    peer.requests.clear()


async def both_ways(
    service: OllamaService, peer: OllamaPeer, steps: Sequence[Step]
) -> tuple[tuple[Outcome, int], tuple[Outcome, int]]:
    """Return what an answer of those `steps` is, and how often it was asked for: as a task has it,
    and by itself."""
    await keep_one(service, peer)
    peer.script("llama3.2", raw(steps))
    by_task = outcome(*await read_all(service)), len(peer.requests)
    begun = await begin(service, peer, steps)
    return by_task, (await begun.end(), len(peer.requests))


@pytest.mark.parametrize("name", RECORDED)
async def test_a_cut_at_every_byte_gives_what_a_task_gives(
    ollama_peer: OllamaPeer, name: str
) -> None:
    message = RECORDED[name]
    async with warm(ollama_peer) as service:
        for cut in range(len(message) + 1):
            steps = [message[:cut], Do.CLOSE]
            by_task, by_itself = await both_ways(service, ollama_peer, steps)
            assert by_itself == by_task, cut


@pytest.mark.parametrize("name", sorted(RECORDED.keys() - {"more than asked"}))
async def test_two_reads_give_what_a_task_gives(ollama_peer: OllamaPeer, name: str) -> None:
    message = RECORDED[name]
    async with warm(ollama_peer) as service:
        for cut in range(0, len(message), 3):
            steps = [message[:cut], message[cut:], Do.CLOSE]
            by_task, by_itself = await both_ways(service, ollama_peer, steps)
            assert by_itself == by_task, cut


async def test_a_whole_answer_leaves_nothing_to_do_and_its_connection(
    ollama_peer: OllamaPeer,
) -> None:
    async with warm(ollama_peer) as service:
        assert isinstance(service, Eager)
        await keep_one(service, ollama_peer)
        ollama_peer.script("llama3.2", chunks([chat_line("a"), chat_line("b"), chat_end()]))
        for _ in range(3):
            begun = Begun().begin(service, ask(), REF)
            await begun.is_over.wait()
            assert begun.rest is None
            said = [each.text for each in begun.events if isinstance(each, TextDelta)]
            assert (type(begun.events[0]), said) == (Started, ["a", "b"])
            assert type(begun.events[-1]) is Finished
    assert ollama_peer.connections == 1


async def test_where_no_connection_is_kept_nothing_is_begun(ollama_peer: OllamaPeer) -> None:
    ollama_peer.add_model("llama3.2")
    heard = Begun()
    async with serving(ollama_peer.url) as service:
        assert service.begin(ask(), REF, heard._tell, heard._over) is None
    assert ollama_peer.requests == []


async def test_what_would_be_refused_is_not_begun(ollama_peer: OllamaPeer) -> None:
    heard = Begun()
    ollama_peer.add_model("llama3.2")
    async with serving(ollama_peer.url, num_ctx=4) as service:
        await service.models()
        await keep_one(service, ollama_peer)
        for request in (
            ask("word " * 100),
            ask(think="rubbish"),
            ask("word " * 9, truncate=False),
        ):
            assert service.begin(request, REF, heard._tell, heard._over) is None
    assert ollama_peer.requests == []


@pytest.mark.parametrize("cut", range(0, len(RECORDED["chunked"]), 7))
async def test_cancelling_at_any_byte_hangs_up_and_nothing_more_is_told(
    ollama_peer: OllamaPeer, cut: int
) -> None:
    message, more = RECORDED["chunked"], asyncio.Event()
    async with warm(ollama_peer) as service:
        begun = await begin(service, ollama_peer, [message[:cut], more, message[cut:]])
        seen = await ollama_peer.request()
        await anyio.wait_all_tasks_blocked()
        told = begun.tellings
        assert not seen.closed.is_set()
        begun.cancel()
        begun.cancel()
        await seen.until_closed()
        more.set()
        await until_let_go(service)
        assert (begun.tellings, begun.is_over.is_set()) == (told, False)


async def until_let_go(service: OllamaService) -> None:
    """Wait until the server is at nothing."""
    while service._http.asked:
        await anyio.lowlevel.checkpoint()


def waiting_once(gate: asyncio.Event) -> Callable[[Sequence[Event]], Wait | None]:
    """The first telling is to be waited for."""
    waits: list[Wait] = [gate_of(gate)]
    return lambda events: waits.pop() if waits else None


def gate_of(gate: asyncio.Event) -> Wait:
    async def wait() -> None:
        await gate.wait()

    return wait


async def test_who_has_to_be_waited_for_is_told_nothing_before(ollama_peer: OllamaPeer) -> None:
    gate = asyncio.Event()
    async with warm(ollama_peer) as service:
        await keep_one(service, ollama_peer)
        ollama_peer.script("llama3.2", chunks([chat_line("a"), chat_line("b"), chat_end()]))
        begun = Begun(waiting_once(gate)).begin(service, ask(), REF)
        await begun.is_over.wait()
        await ollama_peer.requests[0].answered.wait()
        await anyio.wait_all_tasks_blocked()
        assert begun.tellings == 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(begun.end)
            await anyio.wait_all_tasks_blocked()
            assert begun.tellings == 1
            gate.set()
        said = [each.text for each in begun.events if isinstance(each, TextDelta)]
        assert said == ["a", "b"] and type(begun.events[-1]) is Finished
        assert service._http.asked == 0


async def test_each_telling_may_have_to_be_waited_for(ollama_peer: OllamaPeer) -> None:
    lines = [chat_line(str(number)) for number in range(5)]
    async with warm(ollama_peer) as service:
        await keep_one(service, ollama_peer)
        ollama_peer.script("llama3.2", chunks([*lines, chat_end()]))
        events, error, _ = await (
            Begun(lambda events: anyio.lowlevel.checkpoint).begin(service, ask(), REF).end()
        )
    assert error is None
    assert [each.text for each in events if isinstance(each, TextDelta)] == list("01234")


async def test_the_end_may_have_to_be_waited_for(ollama_peer: OllamaPeer) -> None:
    gate = asyncio.Event()

    def hold_the_end(events: Sequence[Event]) -> Wait | None:
        return gate_of(gate) if type(events[-1]) is Finished else None

    async with warm(ollama_peer) as service:
        await keep_one(service, ollama_peer)
        begun = Begun(hold_the_end).begin(service, ask(), REF)
        await begun.is_over.wait()
        assert begun.rest is not None and service._http.asked == 0
        gate.set()
        _, error, _ = await begun.end()
        assert error is None


async def test_the_time_of_who_is_waited_for_is_not_the_server_s(ollama_peer: OllamaPeer) -> None:
    gate, more = asyncio.Event(), asyncio.Event()
    async with warm(ollama_peer, idle_s=0.2) as service:
        await keep_one(service, ollama_peer)
        ollama_peer.script("llama3.2", chunks([chat_line("a"), more, chat_line("b"), chat_end()]))
        begun = Begun(waiting_once(gate)).begin(service, ask(), REF)
        await begun.is_over.wait()
        loop = asyncio.get_running_loop()
        loop.call_later(0.5, gate.set)
        loop.call_later(0.6, more.set)
        _, error, _ = await begun.end()
        assert error is None


class Refusal(Exception):
    """What who is told raises."""


@pytest.mark.parametrize("at", [0, 1, 2, 3])
async def test_what_telling_raises_is_the_end(ollama_peer: OllamaPeer, at: int) -> None:
    def refuse(events: Sequence[Event]) -> None:
        if begun.tellings == at + 1:
            raise Refusal

    begun = Begun(refuse)
    async with warm(ollama_peer) as service:
        await keep_one(service, ollama_peer)
        lines = [chat_line("a"), chat_line("b"), chat_line("c")]
        ollama_peer.script("llama3.2", chunks([*lines, chat_end()]))
        begun.begin(service, ask(), REF)
        with pytest.raises(Refusal):
            await begun.end()
        assert begun.tellings == at + 1
        await until_let_go(service)


@pytest.mark.parametrize("end", ["cancelled", "as a task that never ran", "as a task"])
async def test_what_is_left_can_be_given_up(ollama_peer: OllamaPeer, end: str) -> None:
    async with warm(ollama_peer) as service:
        await keep_one(service, ollama_peer)
        ollama_peer.script("llama3.2", chunks([chat_line("a"), asyncio.Event()]))
        begun = Begun(waiting_once(asyncio.Event())).begin(service, ask(), REF)
        await begun.is_over.wait()
        assert begun.rest is not None
        task = asyncio.ensure_future(run(begun.rest)) if end != "cancelled" else None
        if end == "as a task":
            await anyio.wait_all_tasks_blocked()
        if task is not None:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        begun.cancel()
        await ollama_peer.requests[0].until_closed()


async def run(rest: Callable[[], Awaitable[None]]) -> None:
    await rest()


@pytest.mark.parametrize("at", [1, 2], ids=["at the first words", "at the end"])
@pytest.mark.parametrize("script", [answer(200, A + END), chunks([A + END])])
async def test_who_is_told_may_give_up_meanwhile(
    ollama_peer: OllamaPeer, script: Script, at: int
) -> None:
    """Also where all of the answer has come: the connection then serves the next, as if new."""

    def leave(events: Sequence[Event]) -> Wait | None:
        if begun.tellings != at:
            return None
        begun.cancel()
        return gate_of(asyncio.Event())

    async with warm(ollama_peer) as service:
        await keep_one(service, ollama_peer)
        ollama_peer.script("llama3.2", script)
        begun = Begun(leave).begin(service, ask(), REF)
        while begun.tellings < at:
            await anyio.lowlevel.checkpoint()
        await until_let_go(service)
        assert type((await begin_whole(service, ollama_peer))[-1]) is Finished
        assert (begun.tellings, begun.is_over.is_set()) == (at, False)


async def begin_whole(service: OllamaService, peer: OllamaPeer) -> list[Event]:
    await keep_one(service, peer)
    events, error, _ = await Begun().begin(service, ask(), REF).end()
    assert error is None
    return events


SILENCES: dict[str, list[Step]] = {
    "before the head": [],
    "in the head": [RECORDED["chunked"][:20]],
    "before the first line": [RECORDED["chunked"][: RECORDED["chunked"].index(b"\r\n\r\n") + 4]],
    "between lines": [RECORDED["chunked"][: RECORDED["chunked"].index(b"\r\n\r\n") + 50]],
}


@pytest.mark.parametrize("phase", SILENCES)
async def test_a_silence_is_a_timeout(ollama_peer: OllamaPeer, phase: str) -> None:
    steps = [*SILENCES[phase], asyncio.Event()]
    async with warm(ollama_peer, first_byte_s=0.2, idle_s=0.2) as service:
        by_task, by_itself = await both_ways(service, ollama_peer, steps)
    assert by_itself == by_task
    assert by_itself[0][1] is ProviderTimeout


async def test_an_end_of_message_that_stays_away_holds_nobody_up(ollama_peer: OllamaPeer) -> None:
    async with warm(ollama_peer) as service:
        steps = [RECORDED["chunked"][:-5], asyncio.Event()]
        by_task, by_itself = await both_ways(service, ollama_peer, steps)
        assert by_itself == by_task
        assert type(by_itself[0][0][-1]) is Finished


async def test_a_kept_connection_that_the_server_closed_is_asked_once_more(
    ollama_peer: OllamaPeer,
) -> None:
    async with warm(ollama_peer) as service:
        await keep_one(service, ollama_peer)
        connections = ollama_peer.connections

        async def close_first(exchange: object) -> None:
            script = raw([Do.CLOSE]) if ollama_peer.connections == connections else WHOLE
            await script(exchange)  # type: ignore[arg-type]

        ollama_peer.script("llama3.2", close_first)
        events, error, _ = await Begun().begin(service, ask(), REF).end()
        assert error is None and type(events[-1]) is Finished
        assert [seen.connection for seen in ollama_peer.requests] == [connections, connections + 1]


async def test_a_prompt_that_may_be_cut_is_asked_for_again(ollama_peer: OllamaPeer) -> None:
    ollama_peer.add_model("llama3.2")
    ollama_peer.default_context = 40
    async with warm(ollama_peer) as service:
        await read(service, ask("Hi"))
        begun = Begun().begin(service, ask("word " * 100), REF)
        assert (await begun.end())[1] is ContextLengthExceeded
        begun = Begun().begin(service, ask("word " * 20 + ". " * 100, truncate=True), REF)
        events, error, _ = await begun.end()
        assert error is None
        end = events[-1]
        assert type(end) is Finished and end.truncated
    assert [truncates(seen) for seen in ollama_peer.seen("/api/chat")[-2:]] == [False, True]
    assert ollama_peer.connections <= 2


def truncates(seen: Seen) -> object:
    return seen.body["truncate"]


async def test_a_server_that_may_have_cut_the_prompt_is_asked_for_its_version(
    ollama_peer: OllamaPeer,
) -> None:
    ollama_peer.add_model("llama3.2")
    ollama_peer.default_context = 40
    ollama_peer.version = "0.12.5"
    async with warm(ollama_peer) as service:
        await read(service, ask("Hi"))
        begun = Begun().begin(service, ask("word " * 100), REF)
        events, error, _ = await begun.end()
        assert error is ContextLengthExceeded
        assert type(events[0]) is Started and type(events[-1]) is not Finished
        assert service._http.asked == 0
