"""The express way answers as the long way does, and lets in nobody whom the long way would not."""

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import SocketStream
from anyio.lowlevel import checkpoint
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import telemetry
from gateway.core.errors import EngineFailed
from gateway.core.events import Started, TextDelta
from gateway.core.keys import KeyOrder, KeyScope
from gateway.core.states import StreamEnd
from gateway.http import protocol
from gateway.http.express.exchange import WholeExchange
from tests.integration.http.serving import Served, Way, serving
from tests.scripted_provider import ECHO, ScriptedProvider, answer

PATHS = ("/api/v1/stream", "/api/v1/generate", "/v1/chat/completions", "/v1/completions")


class Counted:
    """The long way, and how often it was gone."""

    def __init__(self) -> None:
        self.times = 0

    def before(self, app: ASGIApp) -> ASGIApp:
        async def count(scope: Scope, receive: Receive, send: Send) -> None:
            self.times += 1
            await app(scope, receive, send)

        return count


VARYING = re.compile(rb'[0-9a-f]{24,32}|"created":\d+|"(ttft|total|queue|load)_ms":[^,}]*')


async def make(served: Served, *scopes: str, **limits: int) -> str:
    order = KeyOrder("test", tuple(map(KeyScope, scopes)), **limits)
    return (await served.gateway.keys.create(order))[1]


def body_for(path: str, **more: Any) -> dict[str, Any]:
    asked = {"prompt": "hi"} if path.endswith("/completions") and "chat" not in path else {}
    return {"model": "scripted/echo"} | (asked or {"messages": [HELLO]}) | more


HELLO = {"role": "user", "content": "hi"}

Ask = Callable[[httpx.AsyncClient, str, str], Any]

CASES: dict[str, Ask] = {
    "an answer": lambda c, path, key: c.post(path, json=body_for(path), headers=bearer(key)),
    "a stream": lambda c, path, key: c.post(
        path, json=body_for(path, stream=True), headers=bearer(key)
    ),
    "no model of that name": lambda c, path, key: c.post(
        path, json=body_for(path) | {"model": "nobody"}, headers=bearer(key)
    ),
    "no JSON": lambda c, path, key: c.post(path, content=b"{", headers=bearer(key)),
    "a form": lambda c, path, key: c.post(path, data={"a": "b"}, headers=bearer(key)),
    "no key": lambda c, path, key: c.post(path, json=body_for(path)),
    "a wrong key": lambda c, path, key: c.post(
        path, json=body_for(path), headers=bearer(key[:-1] + "x")
    ),
    "two keys": lambda c, path, key: c.post(
        path, json=body_for(path), headers={"x-api-key": "other", **bearer(key)}
    ),
    "a foreign page": lambda c, path, key: c.post(
        path, json=body_for(path), headers={"origin": "http://evil.example", **bearer(key)}
    ),
    "a foreign host": lambda c, path, key: c.post(
        path, json=body_for(path), headers={"host": "evil.example", **bearer(key)}
    ),
    "another method": lambda c, path, key: c.put(path, json=body_for(path), headers=bearer(key)),
    "an id of its own": lambda c, path, key: c.post(
        path, json=body_for(path), headers={"x-request-id": "mine", **bearer(key)}
    ),
    "no usable id": lambda c, path, key: c.post(
        path, json=body_for(path), headers={"x-request-id": "a b", **bearer(key)}
    ),
}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def seen(reply: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    """Return what a client sees of a reply, without what differs from one to the next."""
    ids = ("x-request-id", "x-stream-id", "x-gateway-decision")
    kept = {k: v for k, v in reply.headers.items() if k != "date"}
    kept |= {name: str(len(reply.headers[name])) for name in ids if name in reply.headers}
    kept.pop("content-length", None)
    return reply.status_code, kept, VARYING.sub(b"", reply.content)


@pytest.mark.parametrize("scopes", [("infer",), ("manage",)], ids=["its scope", "another scope"])
@pytest.mark.parametrize("case", CASES)
async def test_both_ways_answer_alike(case: str, scopes: tuple[str, ...]) -> None:
    async with serving(ScriptedProvider(answer("a", "b"))) as served:
        key = await make(served, *scopes)
        found = []
        for _ in range(2):
            found.append([seen(await CASES[case](served.client, path, key)) for path in PATHS])
            statuses = served.gateway.metrics.meter.responses
            assert sum(statuses.values()) == len(found) * len(PATHS)
    assert found[0] == found[1]


@pytest.mark.parametrize("path", PATHS)
async def test_who_passed_every_check_goes_the_long_way_once(path: str) -> None:
    long = Counted()
    async with serving(ScriptedProvider(answer("a")), wrap=long.before) as served:
        key = await make(served, "infer")
        for text in ("hi", "a longer one, so the length differs", "hi"):
            body = body_for(path) | ({"prompt": text} if "prompt" in body_for(path) else {})
            reply = await served.client.post(path, json=body, headers=bearer(key))
            assert (reply.status_code, long.times) == (200, 1)
        assert (await served.client.post(path, json=body_for(path))).status_code == 401
        assert long.times == 2


@pytest.mark.parametrize("more", [{"stream": True}, {}], ids=["a stream", "an answer"])
async def test_the_log_of_a_request_names_no_decision_of_one_before_it(
    more: dict[str, bool],
) -> None:
    """Callbacks share a context, which is that of whatever task they start."""
    begun_with: list[str] = []

    def note(app: ASGIApp) -> ASGIApp:
        async def noted(scope: Scope, receive: Receive, send: Send) -> None:
            begun_with.append(telemetry.decision_id.get())
            await app(scope, receive, send)

        return noted

    async with serving(ScriptedProvider(answer("a")), wrap=note) as served:
        key = await make(served, "infer")
        for _ in range(3):
            body = body_for("/v1/chat/completions", **more)
            await served.client.post("/v1/chat/completions", json=body, headers=bearer(key))
        await served.client.get("/health")
    assert begun_with == ["", ""]


async def test_the_primed_server_of_the_tests_answers_the_first_request_by_the_express_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered: list[WholeExchange] = []
    begin = WholeExchange.begin

    def note(self: WholeExchange) -> None:
        answered.append(self)
        begin(self)

    monkeypatch.setattr(WholeExchange, "begin", note)
    monkeypatch.setattr(Way, "is_express", True)
    async with serving(ScriptedProvider(answer("a"))) as served:
        assert (await served.client.post(PATHS[1], json=body_for(PATHS[1]))).status_code == 200
    assert len(answered) == 1


async def test_a_key_with_a_limit_of_requests_goes_the_long_way_where_they_are_counted() -> None:
    async with serving(ScriptedProvider(answer("a"))) as served:
        key = await make(served, "infer", requests_per_minute=1)
        codes = []
        for _ in range(2):
            reply = await served.client.post(PATHS[1], json=body_for(PATHS[1]), headers=bearer(key))
            codes.append(reply.status_code)
    assert codes == [200, 429]


async def test_a_defect_is_told_as_one(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(ScriptedProvider([ValueError("secret")])) as served:
        reply = await served.client.post(PATHS[1], json=body_for(PATHS[1]))
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in reply.text


async def test_a_failure_after_the_beginning_is_the_end_of_the_stream() -> None:
    script = [Started(ECHO), TextDelta("a"), EngineFailed("boom")]
    async with serving(ScriptedProvider(script)) as served:
        reply = await served.client.post(PATHS[0], json=body_for(PATHS[0]))
    assert reply.status_code == 200 and "event: failed" in reply.text


async def test_a_draining_gateway_takes_nothing_by_the_express_way() -> None:
    long = Counted()
    async with serving(ScriptedProvider(answer("a")), wrap=long.before) as served:
        reply = await served.client.post(PATHS[1], json=body_for(PATHS[1]))
        await served.gateway.streams.drain(0)
        reply = await served.client.post(PATHS[1], json=body_for(PATHS[1]))
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "shutting_down")
    assert long.times == 2


async def test_a_revoked_key_passes_no_more() -> None:
    async with serving(ScriptedProvider(answer("a"))) as served:
        key = await make(served, "infer")
        statuses = []
        for _ in range(3):
            body = body_for(PATHS[1])
            reply = await served.client.post(PATHS[1], json=body, headers=bearer(key))
            statuses.append(reply.status_code)
            if len(statuses) == 2:
                [made] = await served.gateway.keys.all()
                await served.gateway.keys.revoke(made.id)
    assert statuses == [200, 200, 401]


def raw_request(text: str = "hi", **more: Any) -> bytes:
    body = json.dumps({"model": "scripted/echo", "prompt": text} | more).encode()
    head = b"POST /api/v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


async def read_replies(client: SocketStream, count: int) -> list[bytes]:
    """Return the bodies of so many whole replies."""
    data, bodies = b"", []
    while len(bodies) < count:
        head, end, rest = data.partition(b"\r\n\r\n")
        size = int(re.search(rb"content-length: (\d+)", head)[1]) if end else 0  # type: ignore[index]
        if end and len(rest) >= size:
            bodies.append(rest[:size])
            data = rest[size:]
        else:
            data += await client.receive()
    assert not data
    return bodies


@asynccontextmanager
async def known_client(
    **settings: Any,
) -> AsyncIterator[tuple[SocketStream, Served, Counted, ScriptedProvider]]:
    """A connection whose head has passed once."""
    long, provider = Counted(), ScriptedProvider(answer("a"))
    async with (
        serving(provider, wrap=long.before, **settings) as served,
        await anyio.connect_tcp("127.0.0.1", served.port) as client,
    ):
        await client.send(raw_request())
        await read_replies(client, 1)
        yield client, served, long, provider


@pytest.mark.parametrize("at", [1, 20, 60, -30, -1])
async def test_a_request_in_two_pieces_is_one(at: int) -> None:
    async with known_client() as (client, _, long, provider):
        for text in ("one", "two"):
            data = raw_request(text)
            await client.send(data[:at])
            await checkpoint()
            await client.send(data[at:])
            await read_replies(client, 1)
        assert [request.prompt for request in provider.requests] == ["hi", "one", "two"]
        # A head in pieces is for the parser of the long way.
        assert long.times == (3 if at in (1, 20, 60) else 1)


async def test_requests_that_come_at_once_are_answered_one_after_the_other() -> None:
    async with known_client() as (client, _, long, provider):
        texts = ["one", "two", "three"]
        await client.send(b"".join(map(raw_request, texts)))
        replies = await read_replies(client, 3)
        ids = [json.loads(reply)["stream_id"] for reply in replies]
        assert [request.prompt for request in provider.requests] == ["hi", *texts]
        assert len(set(ids)) == 3 and long.times == 1


async def test_the_two_ways_take_turns_on_one_connection() -> None:
    other = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with known_client() as (client, _, long, provider):
        await client.send(raw_request("one") + other + raw_request("two") + other)
        await read_replies(client, 4)
        assert [request.prompt for request in provider.requests] == ["hi", "one", "two"]
        assert long.times == 1 + 3  # what comes behind a request of the long way goes it, too


async def test_a_body_that_does_not_come_is_waited_for_by_the_long_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "BODY_WAIT_S", 0.01)
    async with known_client() as (client, _, long, provider):
        data = raw_request("one")
        await client.send(data[:-5])
        while long.times == 1:
            await anyio.sleep(0.005)
        await client.send(data[-5:])
        await read_replies(client, 1)
        assert provider.requests[-1].prompt == "one"


@pytest.mark.parametrize(
    ("more", "status"), [({"model": 5}, b"400"), ({"model": "nobody"}, b"404")]
)
async def test_what_is_refused_is_refused_as_on_the_long_way(
    more: dict[str, Any], status: bytes
) -> None:
    async with known_client() as (client, served, *_):
        await client.send(raw_request(**more))
        head = await client.receive()
        async with await anyio.connect_tcp("127.0.0.1", served.port) as stranger:
            unknown = raw_request(**more).replace(b"Host:", b"X: y\r\nHost:")
            await stranger.send(unknown)
            other = await stranger.receive()
    assert head.split()[1] == other.split()[1] == status
    assert VARYING.sub(b"", head) == VARYING.sub(b"", other)


async def test_who_leaves_stops_the_model() -> None:
    gate = anyio.Event()
    async with known_client() as (client, served, long, provider):
        provider.script = [Started(ECHO), TextDelta("a"), gate]
        await client.send(raw_request("one"))
        while not served.gateway.streams.live_count:
            await anyio.sleep(0.001)
        await client.aclose()
        session = await served.last_session()
        assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED
        assert long.times == 1


async def test_a_quiet_connection_is_closed() -> None:
    async with known_client() as (client, *_):
        await client.send(raw_request())
        await read_replies(client, 1)
        with anyio.fail_after(10), pytest.raises(anyio.EndOfStream):
            await client.receive()


async def test_who_has_all_his_streams_is_told_so() -> None:
    provider, long = ScriptedProvider(answer("a")), Counted()
    async with serving(provider, wrap=long.before) as served:
        key = await make(served, "infer", max_streams=1)
        ask = partial(served.client.post, PATHS[1], json=body_for(PATHS[1]), headers=bearer(key))
        assert (await ask()).status_code == 200
        provider.script = [Started(ECHO), anyio.Event()]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            while not served.gateway.streams.live_count:
                await anyio.sleep(0.001)
            reply = await ask()
            tasks.cancel_scope.cancel()
        assert served.gateway.metrics.meter.refusals["too_many_streams"] == 1
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "too_many_streams")
    assert long.times == 1


async def test_a_revoked_key_is_cut_in_a_body_that_does_not_come() -> None:
    async with serving(ScriptedProvider(answer("a"))) as served:
        key = await make(served, "infer")
        [made] = await served.gateway.keys.all()
        async with await anyio.connect_tcp("127.0.0.1", served.port) as client:
            head = f"POST {PATHS[1]} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            await client.send(
                f"{head}Authorization: Bearer {key}\r\nContent-Length: 9\r\n\r\n".encode()
            )
            assert (await client.receive()).startswith(b"HTTP/1.1 100")  # its body is waited for
            await served.gateway.keys.revoke(made.id)
            reply = await client.receive()
    assert reply.startswith(b"HTTP/1.1 401") and b"key_revoked" in reply
