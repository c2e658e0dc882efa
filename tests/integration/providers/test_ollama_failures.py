"""Every bad end that an answer of Ollama can have: each gives one error of the right kind."""

import asyncio
import gzip
import json
import socket
from collections.abc import Sequence

import pytest

from gateway.core.errors import (
    ContextLengthExceeded,
    EngineFailed,
    GatewayError,
    IncompleteStream,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    Overloaded,
    ProviderError,
    ProviderProtocolError,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    UnsupportedCapability,
)
from gateway.core.events import Finished, Started, TextDelta
from gateway.core.messages import ResponseFormat, Tool
from tests.integration.ollama_peer import (
    Do,
    Exchange,
    OllamaPeer,
    Step,
    answer,
    chat_end,
    chat_line,
    chunks,
    line,
    raw,
)
from tests.integration.providers.ollama_support import REF, ask, read, read_all, serving
from tests.told import stream_of

BUSY = "server busy, please try again.  maximum pending requests exceeded"
TOO_LONG = "input is longer than the context length and cannot be shortened"
RUNNER_SAYS = {"error": {"code": 400, "type": "exceed_context_size_error", "message": "too long"}}


async def fail(
    peer: OllamaPeer, steps: Sequence[Step] | None = None, **timeouts: float
) -> tuple[list[object], GatewayError]:
    """Read an answer that must fail; return what came before the error, and the error."""
    if steps is not None:
        peer.script("llama3.2", chunks(steps))
    async with serving(peer.url, **timeouts) as service:
        events, error = await read_all(service)
    assert error is not None
    assert not any(isinstance(event, Finished) for event in events)
    return list(events), error


async def test_an_error_line_ends_the_stream_after_what_came_before(
    ollama_peer: OllamaPeer,
) -> None:
    """T5"""
    text = "an error was encountered while running the model: \x1b[31mCUDA\n error"
    merged = b"".join([chat_line("a"), chat_line("b"), chat_line("c"), line(error=text)])
    events, error = await fail(ollama_peer, [merged])
    assert events == [Started(REF), TextDelta("a"), TextDelta("b"), TextDelta("c")]
    assert isinstance(error, ProviderError)
    assert error.message == (
        "Ollama failed while it generated: an error was encountered while running the model: "
        "[31mCUDA error"
    )


async def test_an_error_line_that_comes_first_starts_nothing(ollama_peer: OllamaPeer) -> None:
    """T5"""
    events, error = await fail(ollama_peer, [line(error="model runner has unexpectedly stopped")])
    assert events == []
    assert "unexpectedly stopped" in error.message


async def test_a_long_error_text_is_cut(ollama_peer: OllamaPeer) -> None:
    """T5"""
    _, error = await fail(ollama_peer, [line(error="x" * 100_000)])
    assert len(error.message) < 400


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET, None], ids=["cut", "reset", "clean"])
async def test_an_answer_without_its_end_is_incomplete(
    ollama_peer: OllamaPeer, end: Do | None
) -> None:
    """T6: also when HTTP itself ended well, as Ollama does when its runner repeats itself."""
    read_one = asyncio.Event()
    steps: list[Step] = [chat_line("a"), read_one, *([end] if end else [])]
    ollama_peer.script("llama3.2", chunks(steps))
    events = []
    async with serving(ollama_peer.url) as service:
        with pytest.raises(IncompleteStream):
            async for event in stream_of(service, ask(), REF):
                events.append(event)
                read_one.set()
    assert events == [Started(REF), TextDelta("a")]


@pytest.mark.parametrize(
    "status, text, kind",
    [
        (404, "model 'llama3.2' not found", ModelNotFound),
        (400, "invalid model name", InvalidRequest),
        (400, '"llama3.2" does not support chat', UnsupportedCapability),
        (400, "registry.ollama.ai/library/llama3.2:latest does not support tools", None),
        (400, TOO_LONG, ContextLengthExceeded),
        (400, "the input length exceeds the context length", ContextLengthExceeded),
        (400, json.dumps(RUNNER_SAYS), ContextLengthExceeded),
        (400, "something novel", ProviderRejected),
        (401, "unauthorized", ProviderRejected),
        (429, "slow down", Overloaded),
        (499, "request canceled", ProviderUnavailable),
        (500, "llama-server process has terminated: exit status 2", ModelLoadFailed),
        (500, "timed out waiting for llama-server to start", ModelLoadFailed),
        (500, "model requires more system memory (9 GiB) than is available", ModelLoadFailed),
        (500, "invalid format: 3", InvalidRequest),
        (500, "boom", EngineFailed),
        (503, BUSY, Overloaded),
    ],
)
async def test_statuses_and_texts_before_the_first_byte(
    ollama_peer: OllamaPeer, status: int, text: str, kind: type[GatewayError] | None
) -> None:
    """T7, T8"""
    body = json.dumps({"error": text}).encode()
    ollama_peer.script("llama3.2", answer(status, body))
    events, error = await fail(ollama_peer)
    assert events == []
    assert type(error) is (kind or UnsupportedCapability)
    assert kind is not None or error.param == "tools"


@pytest.mark.parametrize(
    "status, body, kind",
    [
        (404, b"404 page not found", ProviderProtocolError),
        (405, b"405 method not allowed", ProviderProtocolError),
        (403, b"", ProviderRejected),
        (500, b"", EngineFailed),
        (500, b"\xff\xfe", EngineFailed),
        (500, b"[" * 50_000, EngineFailed),
        (502, b"<html>Bad gateway</html>", ProviderUnavailable),
        (504, b"", ProviderTimeout),
        (204, b"", ProviderProtocolError),
    ],
)
async def test_bodies_that_are_no_json(
    ollama_peer: OllamaPeer, status: int, body: bytes, kind: type[GatewayError]
) -> None:
    """T7"""
    ollama_peer.script("llama3.2", answer(status, body, "text/plain"))
    _, error = await fail(ollama_peer)
    assert type(error) is kind
    assert len(error.message) < 400


async def test_a_text_that_is_json_is_unwrapped(ollama_peer: OllamaPeer) -> None:
    """T8"""
    inner = json.dumps({"error": {"code": 500, "message": "slot is gone", "type": "x"}})
    ollama_peer.script("llama3.2", answer(500, json.dumps({"error": inner}).encode()))
    _, error = await fail(ollama_peer)
    assert error.message == "Ollama failed before it answered (500): slot is gone"


@pytest.mark.parametrize(
    "header, expected", [("7", 7.0), ("999999", 60.0), ("soon", 1.0), (None, 1.0)]
)
async def test_busy_says_when_to_try_again(
    ollama_peer: OllamaPeer, header: str | None, expected: float
) -> None:
    """T7"""
    headers = [("Retry-After", header)] if header else []
    ollama_peer.script("llama3.2", answer(503, line(error=BUSY), headers=headers))
    _, error = await fail(ollama_peer)
    assert error.retry_after_s == expected


async def test_the_peers_own_refusals_are_understood(ollama_peer: OllamaPeer) -> None:
    """T7, T16: a model that was never listed is not known, so Ollama itself says no."""
    ollama_peer.add_model("llama3.2")
    async with serving(ollama_peer.url) as service:
        for fields in ({"think": True}, {"tools": (Tool("f"),)}):
            _, error = await read_all(service, ask(**fields))
            assert isinstance(error, UnsupportedCapability)
        _, error = await read_all(
            service, ask(response_format=ResponseFormat("json_schema", {"type": "object"}))
        )
        assert error is None


async def test_redirects_are_refused(ollama_peer: OllamaPeer) -> None:
    """F33: what is sent to Ollama goes nowhere else."""
    async with OllamaPeer() as elsewhere:
        elsewhere.script("llama3.2", chunks([chat_end()]))
        to = [("Location", f"{elsewhere.url}/api/chat")]
        ollama_peer.script("llama3.2", answer(307, headers=to))
        _, error = await fail(ollama_peer)
        assert isinstance(error, ProviderProtocolError)
        assert elsewhere.requests == []


async def test_a_compressed_answer_is_refused_unread(ollama_peer: OllamaPeer) -> None:
    """F6: a bomb is not inflated."""
    bomb = gzip.compress(chat_line("x" * 20_000_000) + chat_end())
    for status in (200, 500):
        ollama_peer.script("llama3.2", answer(status, bomb, headers=[("Content-Encoding", "gzip")]))
        events, error = await fail(ollama_peer)
        assert events == []
        assert isinstance(error, ProviderProtocolError)
        assert "compressed" in error.message


@pytest.mark.parametrize(
    "garbage",
    [
        b"rubbish\n",
        b"[]\n",
        b"3\n",
        b'{"message":{"content":"\xff"}}\n',
        b'{"message":{"content":3}}\n',
        b'{"done":"yes"}\n',
        b'{"a":' * 60_000 + b"\n",
        b"data: {}\n",
        b"<!doctype html><html><body>Hello</body></html>\n",
        b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":[1]}}]}}\n',
        b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":"{"}}]}}\n',
        b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":{"a":"\xff\n',
    ],
)
async def test_garbage_is_a_protocol_error(ollama_peer: OllamaPeer, garbage: bytes) -> None:
    """F4"""
    events, error = await fail(ollama_peer, [chat_line("a"), garbage, chat_end()])
    assert events == [Started(REF), TextDelta("a")]
    assert isinstance(error, ProviderProtocolError)
    assert error.message.isprintable()


async def test_a_line_without_end_is_bounded(ollama_peer: OllamaPeer) -> None:
    """F4: the connection is closed once the line is over 8 MiB."""
    _, error = await fail(
        ollama_peer, [b'{"message":{"content":"', *[b"x" * 1_000_000] * 9, asyncio.Event()]
    )
    assert isinstance(error, ProviderProtocolError)
    await ollama_peer.requests[0].until_closed()


@pytest.mark.parametrize(
    "reply", [b"\x00\x01\x02\r\n\r\n", b"SSH-2.0-OpenSSH_9.9\r\n", b"HTTP/1.1 200\xff OK\r\n\r\n"]
)
async def test_a_server_that_speaks_no_http(ollama_peer: OllamaPeer, reply: bytes) -> None:
    """F4"""
    ollama_peer.script("llama3.2", raw([reply]))
    _, error = await fail(ollama_peer)
    assert isinstance(error, ProviderError)


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET])
async def test_a_connection_lost_before_the_answer_is_unavailable(
    ollama_peer: OllamaPeer, end: Do
) -> None:
    """T6"""
    ollama_peer.script("llama3.2", raw([end]))
    _, error = await fail(ollama_peer)
    assert isinstance(error, ProviderUnavailable)


async def test_nobody_listening_is_unavailable_and_says_what_to_look_at() -> None:
    """F1"""
    async with OllamaPeer() as peer:
        url = peer.url
    async with serving(url) as service:
        _, error = await read_all(service)
    assert isinstance(error, ProviderUnavailable)
    assert url in error.message
    assert error.hint is not None and "OLLAMA_HOST" in error.hint


async def test_a_host_that_does_not_resolve_is_unavailable() -> None:
    """F1"""
    async with serving("http://ollama.invalid:11434") as service:
        _, error = await read_all(service)
    assert isinstance(error, ProviderUnavailable)


async def test_a_connection_that_is_not_accepted_times_out() -> None:
    """F2: a full backlog leaves the handshake unanswered."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(address)
        async with serving(f"http://127.0.0.1:{address[1]}", connect_s=0.05) as service:
            _, error = await read_all(service)
    assert isinstance(error, ProviderTimeout)
    assert "accept" in error.message


async def test_silence_before_the_first_byte_times_out(ollama_peer: OllamaPeer) -> None:
    """F2"""
    ollama_peer.script("llama3.2", raw([asyncio.Event()]))
    _, error = await fail(ollama_peer, first_byte_s=0.05)
    assert isinstance(error, ProviderTimeout)
    await ollama_peer.requests[0].until_closed()


async def test_dripping_headers_time_out(ollama_peer: OllamaPeer) -> None:
    """F5: every byte is new, and still there is no answer."""

    async def drip(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            await exchange.write(b"x")

    ollama_peer.script("llama3.2", drip)
    _, error = await fail(ollama_peer, first_byte_s=0.02)
    assert isinstance(error, ProviderTimeout)


async def test_silence_between_lines_times_out(ollama_peer: OllamaPeer) -> None:
    """F2: and not after the long time that a first byte may take."""
    steps = [chat_line("a"), asyncio.Event()]
    events, error = await fail(ollama_peer, steps, idle_s=0.3, first_byte_s=300.0)
    assert events == [Started(REF), TextDelta("a")]
    assert isinstance(error, ProviderTimeout)
    await ollama_peer.requests[0].until_closed()


async def test_headers_alone_may_wait_for_the_first_line_as_long_as_a_load_takes(
    ollama_peer: OllamaPeer,
) -> None:
    """F2: the idle deadline starts with the first line."""
    more = asyncio.Event()
    ollama_peer.script("llama3.2", chunks([b" ", more, chat_line("a"), chat_end()]))
    async with serving(ollama_peer.url, idle_s=0.3, first_byte_s=300.0) as service:
        seen = asyncio.create_task(read(service))
        await ollama_peer.request()
        # Longer than the idle deadline, so that one which began too early would have passed.
        asyncio.get_running_loop().call_later(0.4, more.set)
        assert len(await seen) == 3


async def test_a_dripping_peer_times_out(ollama_peer: OllamaPeer) -> None:
    """F5: bytes that never make a line are no progress."""

    async def drip(exchange: Exchange) -> None:
        await exchange.head(200, [("Transfer-Encoding", "chunked")])
        await exchange.write(b"%x\r\n%b\r\n" % (len(chat_line("a")), chat_line("a")))
        while True:
            await exchange.write(b"1\r\n \r\n")

    ollama_peer.script("llama3.2", drip)
    events, error = await fail(ollama_peer, idle_s=0.3)
    assert events == [Started(REF), TextDelta("a")]
    assert isinstance(error, ProviderTimeout)


async def test_a_reader_who_takes_his_time_is_no_silence_of_the_peer(
    ollama_peer: OllamaPeer,
) -> None:
    """The deadline counts while the server is waited for, and at no other time."""
    ollama_peer.script("llama3.2", chunks([chat_line("a"), chat_line("b"), chat_end()]))
    events = []
    async with serving(ollama_peer.url, idle_s=0.3, first_byte_s=0.3) as service:
        async for event in stream_of(service, ask(), REF):
            events.append(event)
            passed = asyncio.Event()
            asyncio.get_running_loop().call_later(0.4, passed.set)
            await passed.wait()
    assert isinstance(events[-1], Finished)
