"""The OpenAI provider against a scripted server: answers, refusals, hostile ends."""

import asyncio
import gzip
import json
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from gateway.core.embeddings import EmbedRequest, unpack_vector
from gateway.core.errors import (
    EngineFailed,
    GatewayError,
    IncompleteStream,
    ModelNotFound,
    Overloaded,
    ProviderError,
    ProviderProtocolError,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    UnsupportedCapability,
)
from gateway.core.events import Event, Finished, Started, TextDelta, Usage
from gateway.core.loading import ConfigChange
from gateway.core.messages import ImagePart, Message, Options, TextPart
from gateway.core.names import ModelRef, parse_ref
from tests.integration.ollama_peer import Do, Exchange, Script, answer, raw
from tests.integration.openai_peer import (
    CHAT,
    COMPLETIONS,
    DONE,
    EMBEDDINGS,
    MODELS,
    OpenAIPeer,
    delta,
    event,
    stream,
    usage,
    vllm_error,
    words,
)
from tests.integration.providers.openai_support import PATIENCE_S, REF, ask, read, read_all, serving
from tests.told import stream_of

KEY = "sk-very-secret"


async def fail(script: Script | None = None, **fields: Any) -> tuple[list[Event], GatewayError]:
    """Read an answer that must fail; return what came before the error, and the error."""
    async with OpenAIPeer() as peer:
        if script is not None:
            peer.script_route(CHAT, script)
        async with serving(peer.base_url, **fields) as service:
            events, error = await read_all(service)
    assert error is not None
    assert not any(isinstance(each, Finished) for each in events)
    return events, error


async def test_a_chat_streams_with_its_usage() -> None:
    async with OpenAIPeer() as peer, serving(peer.base_url) as service:
        events = await read(service)
    assert events[0] == Started(REF)
    assert "".join(each.text for each in events if isinstance(each, TextDelta)) == "You said: Hello"
    assert events[-1] == Finished("stop", Usage(11, 3))
    [seen] = peer.seen(CHAT)
    assert seen.body == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "Hello"}],
    }


async def test_a_raw_prompt_is_continued() -> None:
    async with OpenAIPeer() as peer, serving(peer.base_url) as service:
        events = await read(service, ask(prompt="Once", raw=True, messages=()))
    assert events[1:] == [
        TextDelta("Once"),
        TextDelta("..."),
        Finished("length", Usage(5, 2)),
    ]
    assert peer.seen(COMPLETIONS)[0].body["prompt"] == "Once"


async def test_answers_share_one_connection_and_the_last_one_is_not_waited_for() -> None:
    async with OpenAIPeer() as peer, serving(peer.base_url) as service:
        for _ in range(3):
            await read(service)
        assert peer.connections == 1


async def test_images_go_as_data_urls() -> None:
    png = b"\x89PNG\r\n\x1a\nrest"
    message = Message("user", (TextPart("what?"), ImagePart(png)))
    async with OpenAIPeer() as peer, serving(peer.base_url) as service:
        await read(service, ask(messages=(message,)))
    [part] = peer.seen(CHAT)[0].body["messages"][0]["content"][1:]
    assert part["image_url"]["url"].startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize("status", [400, 422])
async def test_a_server_that_refuses_stream_options_is_asked_without_and_it_is_remembered(
    status: int,
) -> None:
    async def refuse(exchange: Exchange) -> None:
        if "stream_options" in exchange.seen.body:
            text = "Unexpected fields in the request: {'stream_options'}"
            return await answer(status, json.dumps({"detail": text}).encode())(exchange)
        await words("a", "b")(exchange)

    async with OpenAIPeer() as peer, serving(peer.base_url) as service:
        peer.script_route(CHAT, refuse)
        for _ in range(2):
            assert (await read(service))[-1] == Finished("stop", Usage(7, 2))
        assert ["stream_options" in seen.body for seen in peer.requests] == [True, False, False]


async def test_a_refusal_that_stays_is_not_remembered() -> None:
    """A caller whose text is repeated in an error must not cost others their usage."""
    refuse = vllm_error(400, "bad message: stream_options")
    async with OpenAIPeer() as peer, serving(peer.base_url) as service:
        peer.script_route(CHAT, refuse)
        _, error = await read_all(service)
        assert isinstance(error, ProviderRejected)
        peer.script_route(CHAT, words("a"))
        await read(service)
        asked = ["stream_options" in seen.body for seen in peer.requests]
        assert asked == [True, False, True]


async def test_a_model_that_wants_another_name_for_the_limit_gets_it() -> None:
    async def refuse(exchange: Exchange) -> None:
        if "max_tokens" in exchange.seen.body:
            text = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return await vllm_error(400, text)(exchange)
        await words("a")(exchange)

    async with OpenAIPeer() as peer, serving(peer.base_url) as service:
        peer.script_route(CHAT, refuse)
        await read(service, ask(options=Options(max_tokens=5)))
        assert peer.requests[-1].body["max_completion_tokens"] == 5


@pytest.mark.parametrize(
    "script, kind",
    [
        (vllm_error(404, "The model `m` does not exist.", "NotFoundError"), ModelNotFound),
        (vllm_error(400, "something novel"), ProviderRejected),
        (answer(401, b'{"error":"Unauthorized"}'), ProviderRejected),
        (answer(403), ProviderRejected),
        (answer(404, b'{"detail":"Not Found"}'), ProviderProtocolError),
        (answer(500, b"Internal Server Error", "text/plain"), EngineFailed),
        (answer(502, b"<html>"), ProviderUnavailable),
        (answer(200, b'{"choices":[]}'), ProviderProtocolError),
        (answer(200, b"<html>", "text/html"), ProviderProtocolError),
        (raw([b"SSH-2.0-OpenSSH_9.9\r\n"]), ProviderError),
        (raw([Do.CLOSE]), ProviderUnavailable),
        (raw([Do.RESET]), ProviderUnavailable),
        (stream([b": nothing\n\n"]), IncompleteStream),
        (stream([event(error={"message": "boom"}), DONE]), ProviderError),
    ],
)
async def test_bad_ends_before_the_first_word(script: Script, kind: type[GatewayError]) -> None:
    events, error = await fail(script)
    assert events == []
    assert isinstance(error, kind)
    assert error.message.isprintable()


async def test_busy_says_when_to_try_again() -> None:
    _, error = await fail(answer(429, b"{}", headers=[("Retry-After", "7")]))
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 7


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET, None], ids=["cut", "reset", "clean"])
async def test_an_answer_without_its_end_is_incomplete(end: Do | None) -> None:
    read_one = asyncio.Event()
    events: list[Event] = []
    async with OpenAIPeer() as peer, serving(peer.base_url) as service:
        peer.script_route(CHAT, stream([delta("a"), read_one, *([end] if end else [])]))
        with pytest.raises(IncompleteStream):
            async for each in stream_of(service, ask(), REF):
                events.append(each)
                read_one.set()
    assert events == [Started(REF), TextDelta("a")]


BODY = delta("Grüße 🦙") + delta(finish="stop") + usage() + DONE
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = (
    HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in BODY.splitlines(keepends=True))
    + b"0\r\n\r\n"
)


@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET])
async def test_a_cut_at_every_byte_gives_exactly_one_end(end: Do) -> None:
    whole_from = CHUNKED.index(b"[DONE]") + len(b"[DONE]")
    async with OpenAIPeer() as peer, serving(peer.base_url, patience_s=60.0) as service:
        for cut in range(len(CHUNKED) + 1):
            peer.script_route(CHAT, raw([CHUNKED[:cut], end]))
            with anyio.fail_after(PATIENCE_S):
                events, error = await read_all(service)
            ends = [index for index, each in enumerate(events) if isinstance(each, Finished)]
            if error is None:
                assert cut >= whole_from, cut
                assert ends == [len(events) - 1], cut
            else:
                assert isinstance(error, ProviderError), cut
                assert ends == [], cut
                # A reset may overtake bytes that were on their way; a close may not.
                assert cut < len(CHUNKED) or end is Do.RESET, cut


async def test_comments_keep_a_slow_answer_alive_and_silence_does_not() -> None:
    script = stream([delta("a"), *[b": ping\n\n"] * 5, asyncio.Event()])
    events, error = await fail(script, idle_timeout_s=0.3)
    assert events == [Started(REF), TextDelta("a")]
    assert isinstance(error, ProviderTimeout)


async def test_a_dripping_peer_times_out() -> None:
    async def drip(exchange: Exchange) -> None:
        await exchange.head(200, [("Transfer-Encoding", "chunked")])
        await exchange.write(b"%x\r\n%b\r\n" % (len(delta("a")), delta("a")))
        while True:
            await exchange.write(b"1\r\nx\r\n")

    _, error = await fail(drip, idle_timeout_s=0.3)
    assert isinstance(error, ProviderTimeout)


async def test_silence_before_the_first_byte_times_out() -> None:
    _, error = await fail(raw([asyncio.Event()]), first_byte_timeout_s=0.05)
    assert isinstance(error, ProviderTimeout)


async def test_leaving_closes_the_connection_at_once() -> None:
    async with OpenAIPeer() as peer, serving(peer.base_url) as service:
        peer.script_route(CHAT, stream([delta("a"), asyncio.Event()]))
        async with aclosing(stream_of(service, ask(), REF)) as events:
            async for each in events:
                if isinstance(each, TextDelta):
                    break
        await peer.requests[0].until_closed()


async def test_being_cancelled_closes_the_connection_before_there_is_an_answer() -> None:
    async with OpenAIPeer() as peer, serving(peer.base_url) as service:
        for path, call in (
            (CHAT, lambda: read(service)),
            (EMBEDDINGS, lambda: service.embed(embed("a"), REF)),
        ):
            peer.requests.clear()
            peer.script_route(path, raw([asyncio.Event()]))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                seen = await peer.request(path=path)
                tasks.cancel_scope.cancel()
            await seen.until_closed()


async def test_a_redirect_is_not_followed_and_takes_no_key_along() -> None:
    async with OpenAIPeer() as elsewhere, OpenAIPeer() as peer:
        for path in (CHAT, MODELS, EMBEDDINGS):
            to = [("Location", f"{elsewhere.url}{path}")]
            peer.script_route(path, answer(307, headers=to))
        async with serving(peer.base_url, key=KEY) as service:
            _, error = await read_all(service)
            assert isinstance(error, ProviderProtocolError)
            with pytest.raises(ProviderProtocolError):
                await service.models()
            with pytest.raises(ProviderProtocolError):
                await service.embed(embed("a"), REF)
        assert len(peer.requests) == 3
        assert elsewhere.requests == []


async def test_the_key_goes_with_every_request_and_into_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    async with OpenAIPeer(key=KEY) as peer, serving(peer.base_url, key=KEY) as service:
        await service.models()
        await read(service)
        await service.embed(embed("a"), REF)
        assert len(peer.requests) == 3
        for status in (400, 401, 404, 500):
            said = f"Incorrect API key provided: {KEY}"
            peer.script_route(CHAT, vllm_error(status, said))
            _, error = await read_all(service)
            assert error is not None
            shown = [error.message, error.hint, error.args, error.__cause__, error.__dict__]
            assert KEY not in repr(shown)
    assert KEY not in caplog.text


async def test_a_wrong_key_is_said_to_be_one() -> None:
    async with OpenAIPeer(key=KEY) as peer, serving(peer.base_url, key="other") as service:
        _, error = await read_all(service)
        assert isinstance(error, ProviderRejected)
        with pytest.raises(ProviderRejected):
            await service.models()


async def test_a_compressed_answer_is_refused_unread() -> None:
    bomb = gzip.compress(delta("x" * 20_000_000))
    for status in (200, 500):
        script = answer(status, bomb, headers=[("Content-Encoding", "gzip")])
        events, error = await fail(script)
        assert events == []
        assert isinstance(error, ProviderProtocolError)


async def test_listing_tells_the_length_and_paths_are_names() -> None:
    async with (
        OpenAIPeer(ids=["Qwen/Q", "/models/x.gguf"]) as peer,
        serving(peer.base_url) as service,
    ):
        infos = await service.models()
        assert [info.id for info in infos] == ["lab/Qwen/Q", "lab/models/x.gguf"]
        assert {info.context_length for info in infos} == {4096}
        ref = parse_ref("lab", "models/x.gguf")
        await read(service, ref=ref)
        assert peer.seen(CHAT)[0].body["model"] == "/models/x.gguf"


async def test_models_that_are_not_allowed_are_neither_listed_nor_asked_for() -> None:
    async with (
        OpenAIPeer(ids=["Qwen/Q", "m"]) as peer,
        serving(peer.base_url, models=["Qwen/*"]) as service,
    ):
        assert [info.id for info in await service.models()] == ["lab/Qwen/Q"]
        _, error = await read_all(service)
        assert isinstance(error, ModelNotFound)
        with pytest.raises(ModelNotFound):
            await service.embed(embed("a"), REF)
        assert peer.seen(CHAT) == []


async def test_a_server_without_a_listing_has_the_models_that_are_named() -> None:
    async with OpenAIPeer() as peer:
        peer.script_route(MODELS, answer(404, b'{"detail":"Not Found"}'))
        async with serving(peer.base_url, models=["m", "x*"]) as service:
            assert [info.id for info in await service.models()] == ["lab/m"]
        async with serving(peer.base_url) as service:
            with pytest.raises(ProviderProtocolError):
                await service.models()


@pytest.mark.parametrize(
    "script, kind",
    [
        (raw([asyncio.Event()]), ProviderTimeout),
        (answer(200, b"[1]"), ProviderProtocolError),
        (raw([Do.RESET]), ProviderUnavailable),
        (answer(503, b"{}"), Overloaded),
    ],
)
async def test_listings_that_fail(script: Script, kind: type[GatewayError]) -> None:
    limit_s = 0.2 if kind is ProviderTimeout else 20
    async with OpenAIPeer() as peer, serving(peer.base_url, control_timeout_s=limit_s) as service:
        peer.script_route(MODELS, script)
        with pytest.raises(kind):
            await service.models()


def embed(*inputs: str) -> EmbedRequest:
    return EmbedRequest(id="r", model="lab/m", inputs=inputs)


async def test_embeddings_come_in_the_order_of_their_inputs() -> None:
    async with OpenAIPeer() as peer, serving(peer.base_url) as service:
        found = await service.embed(embed("a", "bcd"), REF)
        assert [unpack_vector(vector)[0] for vector in found.vectors] == [1.0, 3.0]
        assert found.usage == Usage(4)
        assert peer.requests[0].body["encoding_format"] == "base64"


async def test_a_server_that_knows_no_base64_is_asked_for_numbers() -> None:
    async with OpenAIPeer() as peer, serving(peer.base_url) as service:

        async def refuse(exchange: Exchange) -> None:
            if "encoding_format" in exchange.seen.body:
                return await vllm_error(400, "encoding_format must be 'float'")(exchange)
            await peer._embeddings(exchange)

        peer.script_route(EMBEDDINGS, refuse)
        for _ in range(2):
            found = await service.embed(embed("ab"), REF)
            assert unpack_vector(found.vectors[0]) == [2.0, 3.0, 4.0, 0.5]
        assert len(peer.requests) == 3


async def test_a_server_without_embeddings_says_so() -> None:
    async with OpenAIPeer() as peer, serving(peer.base_url) as service:
        peer.script_route(EMBEDDINGS, answer(404, b'{"detail":"Not Found"}'))
        with pytest.raises(UnsupportedCapability, match="embeddings"):
            await service.embed(embed("a"), REF)


async def test_what_is_in_its_memory_is_the_servers_own_affair() -> None:
    async with OpenAIPeer() as peer, serving(peer.base_url) as service:
        await service.models()
        for call in (
            service.load(REF),
            service.unload(REF),
            service.plan(REF),
            service.configure(REF, ConfigChange(pinned=True)),
        ):
            with pytest.raises(UnsupportedCapability, match="where 'lab' runs"):
                await call
        assert (await service.config(REF)).ref == REF
        assert [status.ref for status in await service.status()] == [REF]
        assert await service.status(ModelRef("lab", "other")) == []
        assert await service.resident() == ()
