"""Who is let in, by every route and every carrier; the limits; what a revocation ends."""

import json
from typing import Any

import anyio
import httpx
import openai
import pytest
from openai import AsyncOpenAI

from gateway.core.errors import DatabaseUnavailable
from gateway.core.events import Started, TextDelta
from gateway.core.keys import Caller, KeyOrder, KeyScope
from gateway.core.names import ModelRef
from gateway.http.access import OPEN_ROUTES, ROUTE_SCOPES
from tests.integration.http.serving import Served, serving
from tests.integration.http.sse_reader import HELLO
from tests.scripted_provider import ECHO, ScriptedProvider, answer

EVERY_ROUTE = [
    (method, path.replace("{id:path}", "a/b").replace("{id}", "0123456789ab"))
    for entry, path in ROUTE_SCOPES
    for method in {"*": ["GET", "POST"], "WEBSOCKET": []}.get(entry, [entry])
]
HOSTILE = [
    "' OR '1'='1",
    "gw-' UNION SELECT",
    "gw-0123456789ab-' OR 1=1 --",
    "gw-0123456789ab-" + "0" * 64,
    "%00",
    "{{7*7}}",
    "../../etc/passwd",
    "a" * 8000,
    "\u00fc\u00df",
    "undefined or null",
    "Bearer Bearer",
    "gw-0123456789AB-" + "F" * 64,
]


async def make(served: Served, *scopes: str, **limits: int) -> str:
    """Return a key that the gateway knows."""
    order = KeyOrder("test", tuple(map(KeyScope, scopes)), **limits)
    _, text = await served.gateway.keys.create(order)
    return text


def carriers(key: str) -> list[dict[str, Any]]:
    return [
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer  {key}"},
        {"x-api-key": key},
    ]


def code_of(reply: httpx.Response) -> str:
    body = reply.json()
    error = body["errors"][0]["extensions"] if "errors" in body else body["error"]
    code: str = error["code"]
    return code


async def test_no_route_but_health_is_open() -> None:
    async with serving(ScriptedProvider(answer("hi"))) as served:
        await make(served, "infer")
        for method, path in EVERY_ROUTE:
            reply = await served.client.request(method, path)
            assert (reply.status_code, code_of(reply)) == (401, "unauthenticated"), path
            assert reply.headers["www-authenticate"] == 'Bearer realm="gateway"'
        for method, path in OPEN_ROUTES:
            assert (await served.client.request(method, path)).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/health/live/", "/health//live", "/HEALTH/live", "//health/live", "/v1/models/",
     "/health/live/../../v1/models", "/health/%6cive/..", "/%2fhealth/live", "/v1/%6dodels",
     "/health/live;/v1/models", "/health/live%00"],
)  # fmt: skip
async def test_no_spelling_of_a_path_opens_a_door(path: str) -> None:
    async with serving(ScriptedProvider()) as served:
        await make(served, "infer")
        async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
            for host in ("127.0.0.1", "127.0.0.1/health/live?"):
                await stream.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                status = int((await stream.receive()).split(b" ")[1])
                assert status in (401, 403)


async def test_a_browser_without_a_key_sees_pages_and_nothing_that_holds_data() -> None:
    browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    async with serving(ScriptedProvider(answer("hi"))) as served:
        await make(served, "infer")
        index = await served.client.get("/", headers=browser)
        assert index.status_code == 200
        assert index.headers["content-type"].startswith("text/html")
        for method, path in EVERY_ROUTE:
            if (method, path) not in {("GET", "/"), ("GET", "/graphql")}:
                reply = await served.client.request(method, path, headers=browser)
                assert (reply.status_code, code_of(reply)) == (401, "unauthenticated"), path
        for path in ("/graphql?query={version}", "/graphql?query=", "/graphql?%71uery=x"):
            assert (await served.client.get(path, headers=browser)).status_code == 401
        wrong = {**browser, "x-api-key": "gw-wrong"}
        assert (await served.client.get("/", headers=wrong)).status_code == 401


async def test_wrong_keys_of_one_address_are_throttled_and_right_ones_never() -> None:
    async with serving(ScriptedProvider(), wrong_keys_per_minute=3) as served:
        key = await make(served, "infer")

        async def ask(text: str) -> httpx.Response:
            return await served.client.get("/v1/models", headers={"x-api-key": text})

        refused = [await ask("gw-wrong") for _ in range(4)]
        right = await ask(key)
        unkeyed = await served.client.get("/v1/models")
    assert [reply.status_code for reply in refused] == [401, 401, 401, 429]
    assert code_of(refused[3]) == "rate_limited"
    assert 1 <= int(refused[3].headers["retry-after"]) <= 20
    assert "www-authenticate" not in refused[3].headers
    assert (right.status_code, unkeyed.status_code) == (200, 401)


async def test_each_route_opens_for_its_scopes_whatever_carries_the_key() -> None:
    async with serving(ScriptedProvider(answer("hi"))) as served:
        for scope in KeyScope:
            key = await make(served, scope)
            caller = Caller("x", frozenset({scope}))
            for entry, template in ROUTE_SCOPES:
                if entry == "WEBSOCKET":
                    continue
                method = "POST" if entry == "*" else entry
                path = template.replace("{id:path}", "a/b").replace("{id}", "0123456789ab")
                for headers in carriers(key):
                    reply = await served.client.request(method, path, headers=headers)
                    is_let_in = caller.may(ROUTE_SCOPES[entry, template])
                    assert (reply.status_code != 403) == is_let_in, (scope, method, path)
                    assert reply.status_code != 401
                    if not is_let_in:
                        assert code_of(reply) == "forbidden"


async def test_the_error_has_the_shape_of_its_face() -> None:
    async with serving(ScriptedProvider()) as served:
        await make(served, "infer")
        native = (await served.client.post("/api/v1/stream", json={})).json()["error"]
        openai_ = (await served.client.post("/v1/completions", json={})).json()["error"]
        graphql = (await served.client.post("/graphql", json={})).json()["errors"]
    assert set(native) == {"code", "message", "hint", "retryable", "request_id"}
    assert set(openai_) == {"message", "type", "param", "code"}
    assert set(graphql[0]["extensions"]) == {"code", "hint", "retryable"}


async def test_hostile_credentials_are_wrong_keys_and_nothing_else() -> None:
    async with serving(ScriptedProvider()) as served:
        await make(served, "infer")
        for text in HOSTILE:
            for headers in carriers(text):
                raw = {name: value.encode() for name, value in headers.items()}
                reply = await served.client.get("/v1/models", headers=raw)  # type: ignore[arg-type]
                assert (reply.status_code, code_of(reply)) == (401, "unauthenticated"), text
                assert text not in reply.text


async def test_hostile_credentials_are_not_judged_while_the_database_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def away(*_: object) -> None:
        raise DatabaseUnavailable("away")

    async with serving(ScriptedProvider(answer("hi"))) as served:
        key = await make(served, "infer")
        monkeypatch.setattr(served.gateway.gatekeeper._followed, "stamp", away)
        await served.gateway.gatekeeper.look()
        for text in HOSTILE:
            raw = {"x-api-key": text.encode()}
            reply = await served.client.get("/v1/models", headers=raw)  # type: ignore[arg-type]
            assert (reply.status_code, code_of(reply)) == (503, "database_unavailable")
            assert "retry-after" in reply.headers
        known = await served.client.get("/v1/models", headers={"x-api-key": key})
    assert known.status_code == 200


async def test_two_keys_in_one_request_are_refused() -> None:
    async with serving(ScriptedProvider()) as served:
        one, two = await make(served, "infer"), await make(served, "admin")
        headers = {"authorization": f"Bearer {one}", "x-api-key": two}
        reply = await served.client.get("/api/v1/keys", headers=headers)
    assert reply.status_code == 401


async def test_a_refused_request_is_answered_before_its_body_is_there() -> None:
    async with serving(ScriptedProvider()) as served:
        await make(served, "infer")
        async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
            head = "POST /api/v1/stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n"
            await stream.send(head.encode())
            assert b" 401 " in await stream.receive()


async def test_the_openai_client_works_with_a_key_and_raises_its_own_errors_without() -> None:
    async with serving(ScriptedProvider(answer("hi"))) as served:
        key = await make(served, "infer")
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) as client:
            chat = await client.chat.completions.create(
                model="scripted/echo", messages=[{"role": "user", "content": "x"}]
            )
            assert chat.choices[0].message.content == "hi"
            wrong = client.with_options(api_key=key[:-1] + ("0" if key[-1] != "0" else "1"))
            with pytest.raises(openai.AuthenticationError):
                await wrong.models.list()
            manager = client.with_options(api_key=await make(served, "manage"))
            with pytest.raises(openai.PermissionDeniedError):
                await manager.completions.create(model="scripted/echo", prompt="x")


async def test_without_keys_only_this_machine_is_served() -> None:
    async with serving(ScriptedProvider(), wrap=from_address("192.0.2.7")) as served:
        remote = await served.client.get("/v1/models")
        health = await served.client.get("/health/live")
        key = await make(served, "infer")
        with_key = await served.client.get("/v1/models", headers={"x-api-key": key})
    assert (remote.status_code, code_of(remote)) == (403, "forbidden")
    assert "gateway keys create" in remote.json()["error"]["message"]
    assert (health.status_code, with_key.status_code) == (200, 200)


async def test_without_keys_nobody_is_served_at_a_public_address() -> None:
    async with serving(ScriptedProvider(), host="0.0.0.0") as served:
        local = await served.client.get("/v1/models")
        key = await make(served, "infer")
        with_key = await served.client.get("/v1/models", headers={"x-api-key": key})
    assert (local.status_code, with_key.status_code) == (403, 200)


async def test_a_public_gateway_answers_to_the_allowed_names_only() -> None:
    async with serving(ScriptedProvider(), host="0.0.0.0", allowed_hosts=("gpu",)) as served:
        headers = {"x-api-key": await make(served, "infer")}
        codes = [
            (await served.client.get("/v1/models", headers=headers | {"host": host})).status_code
            for host in ("gpu:8420", "127.0.0.1", "evil.example")
        ]
    assert codes == [200, 200, 403]


def from_address(address: str) -> Any:
    """Return what makes requests come from elsewhere, as uvicorn would tell it."""

    def wrap(app: Any) -> Any:
        async def moved(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "client": (address, 1)}, receive, send)

        return moved

    return wrap


async def test_a_rate_limit_is_told_on_every_reply_and_then_refuses() -> None:
    async with serving(ScriptedProvider()) as served:
        key = await make(served, "infer", requests_per_minute=2)
        replies = [
            await served.client.get("/v1/models", headers={"x-api-key": key}) for _ in range(3)
        ]
        other = await served.client.get(
            "/v1/models", headers={"x-api-key": await make(served, "infer")}
        )
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    left = [reply.headers["x-ratelimit-remaining-requests"] for reply in replies]
    assert left == ["1", "0", "0"]
    assert {reply.headers["x-ratelimit-limit-requests"] for reply in replies} == {"2"}
    assert all(reply.headers["x-ratelimit-reset-requests"] for reply in replies)
    assert code_of(replies[2]) == "rate_limited"
    assert replies[2].json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(replies[2].headers["retry-after"]) <= 30
    assert "x-ratelimit-limit-requests" not in other.headers


def unending() -> ScriptedProvider:
    """Return a provider whose streams begin and then wait until they are stopped."""
    return ScriptedProvider([Started(ECHO), TextDelta("x"), anyio.Event()])


async def test_a_key_has_as_many_streams_as_it_may_and_gets_them_back() -> None:
    async with serving(unending()) as served:
        key = await make(served, "infer", max_streams=1)
        headers = {"x-api-key": key}
        async with served.client.stream(
            "POST", "/api/v1/stream", json=HELLO, headers=headers
        ) as first:
            assert first.status_code == 200
            second = await served.client.post("/api/v1/stream", json=HELLO, headers=headers)
            assert (second.status_code, code_of(second)) == (429, "too_many_streams")
            assert "retry-after" in second.headers
        await served.last_session()
        async with served.client.stream(
            "POST", "/api/v1/stream", json=HELLO, headers=headers
        ) as third:
            assert third.status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/stream", "/v1/chat/completions"])
async def test_revoking_a_key_ends_its_live_stream_with_an_error_and_no_other(path: str) -> None:
    async with serving(unending()) as served:
        admin, mine, other = [await make(served, s) for s in ("admin", "infer", "infer")]
        body = {**HELLO, "stream": True}

        async def revoke() -> None:
            await served.client.delete(
                f"/api/v1/keys/{mine.split('-')[1]}", headers={"x-api-key": admin}
            )

        async with (
            served.client.stream("POST", path, json=body, headers=carriers(other)[0]) as stays,
            served.client.stream("POST", path, json=body, headers=carriers(mine)[0]) as ends,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(revoke)
            with anyio.fail_after(10):
                text = "".join([chunk async for chunk in ends.aiter_text()])
            assert '"code":"key_revoked"' in text
            async for chunk in stays.aiter_text():
                assert "key_revoked" not in chunk
                break
        gone = await served.client.get("/v1/models", headers={"x-api-key": mine})
    assert (gone.status_code, code_of(gone)) == (401, "key_revoked")


async def test_revoking_a_key_cuts_what_cannot_be_told() -> None:
    class Hangs(ScriptedProvider):
        async def embed(self, request: Any, ref: ModelRef) -> Any:
            began.set()
            await anyio.sleep_forever()

    began = anyio.Event()
    async with serving(Hangs()) as served:
        key = await make(served, "infer")
        replies = []

        async def embed() -> None:
            body = {"model": "scripted/echo", "input": "a"}
            replies.append(
                await served.client.post("/v1/embeddings", json=body, headers={"x-api-key": key})
            )

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(embed)
                await began.wait()
                await served.gateway.keys.revoke(key.split("-")[1])
    assert [code_of(reply) for reply in replies] == ["key_revoked"]
    assert replies[0].status_code == 401


async def test_admins_make_list_and_revoke_keys_and_the_secret_is_told_once() -> None:
    async with serving(ScriptedProvider()) as served:
        headers = {"authorization": f"Bearer {await make(served, 'admin')}"}
        order = {"name": "al\u00efce", "scopes": ["manage", "infer", "infer"], "max_streams": 2}
        made = await served.client.post("/api/v1/keys", json=order, headers=headers)
        key = made.json()
        assert made.status_code == 201
        assert made.headers["cache-control"] == "no-store"
        assert key["scopes"] == ["infer", "manage"]
        listed = await served.client.get("/api/v1/keys", headers=headers)
        assert [entry["name"] for entry in listed.json()["keys"]] == ["test", "al\u00efce"]
        assert key["key"] not in listed.text and "digest" not in listed.text
        works = await served.client.get("/v1/models", headers={"x-api-key": key["key"]})
        revoked = await served.client.delete(f"/api/v1/keys/{key['id']}", headers=headers)
        again = await served.client.delete(f"/api/v1/keys/{key['id']}", headers=headers)
        unknown = await served.client.delete("/api/v1/keys/0123456789ab", headers=headers)
    assert works.status_code == 200
    assert revoked.json()["revoked_at"] is not None
    assert again.json() == revoked.json()
    assert (unknown.status_code, code_of(unknown)) == (404, "key_not_found")


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"name": "a"},
        {"name": "", "scopes": ["infer"]},
        {"name": "a" * 101, "scopes": ["infer"]},
        {"name": "a\u0000", "scopes": ["infer"]},
        {"name": "a", "scopes": []},
        {"name": "a", "scopes": ["root"]},
        {"name": "a", "scopes": ["infer"], "max_streams": 0},
        {"name": "a", "scopes": ["infer"], "requests_per_minute": 10**10},
        {"name": "a", "scopes": ["infer"], "expires": 1},
    ],
)
async def test_a_key_that_makes_no_sense_is_not_made(order: dict[str, Any]) -> None:
    async with serving(ScriptedProvider()) as served:
        reply = await served.client.post("/api/v1/keys", content=json.dumps(order))
        assert reply.status_code in (400, 422)
        assert await served.gateway.keys.all() == []


async def test_the_requests_of_one_key_have_its_id_as_their_caller() -> None:
    provider = ScriptedProvider(answer("a"))
    async with serving(provider) as served:
        key = await make(served, "infer")
        for headers in carriers(key)[1:]:
            await served.client.post("/api/v1/generate", json=HELLO, headers=headers)
    assert [request.caller for request in provider.requests] == [key.split("-")[1]] * 2


async def test_a_browser_may_ask_before_it_sends_a_key() -> None:
    origin = "https://chat.example"
    async with serving(ScriptedProvider(), cors_origins=(origin,)) as served:
        await make(served, "infer")
        asked = await served.client.options(
            "/api/v1/stream",
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            },
        )
        refused = await served.client.post("/api/v1/stream", headers={"Origin": origin})
    assert asked.status_code == 200
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    assert refused.headers["access-control-allow-origin"] == origin
    assert "WWW-Authenticate" in refused.headers["access-control-expose-headers"]


async def test_a_stream_s_token_reads_it_without_a_key_and_opens_nothing_else() -> None:
    async with serving(ScriptedProvider(answer("hi"))) as served:
        headers = {"x-api-key": await make(served, "infer")}
        opened = (await served.client.post("/api/v1/streams", json=HELLO, headers=headers)).json()
        url, params = opened["url"], {"token": opened["token"]}
        read = await served.client.get(url, params=params)
        assert (read.status_code, "event: finished" in read.text) == (200, True)
        for method, path in EVERY_ROUTE:
            reply = await served.client.request(method, path, params=params)
            assert reply.status_code == 401, path
        assert (await served.client.delete(url, params=params)).status_code == 401
        assert (await served.client.get(url, params={"token": "1.x"})).status_code == 401
        assert (await served.client.get(url)).status_code == 401


async def test_a_key_reaches_its_own_streams_only() -> None:
    async with serving(unending()) as served:
        mine, other = [{"x-api-key": await make(served, "infer")} for _ in range(2)]
        opened = (await served.client.post("/api/v1/streams", json=HELLO, headers=mine)).json()
        for method in ("GET", "DELETE"):
            reply = await served.client.request(method, opened["url"], headers=other)
            assert (reply.status_code, code_of(reply)) == (404, "stream_not_found")
        assert (await served.client.delete(opened["url"], headers=mine)).status_code == 204


async def test_revoking_a_key_ends_its_detached_streams_and_forgets_those_that_ended() -> None:
    provider = unending()
    async with serving(provider) as served:
        key = await make(served, "infer")
        headers = {"x-api-key": key}
        live = (await served.client.post("/api/v1/streams", json=HELLO, headers=headers)).json()
        provider.script = answer("hi")
        done = (await served.client.post("/api/v1/streams", json=HELLO, headers=headers)).json()
        await served.client.get(done["url"], headers=headers)
        await served.gateway.keys.revoke(key.split("-")[1])
        with anyio.fail_after(10):
            await served.gateway.streams.wait_idle()
        for opened in (live, done):
            reply = await served.client.get(opened["url"], params={"token": opened["token"]})
            assert (reply.status_code, code_of(reply)) == (404, "stream_not_found")
