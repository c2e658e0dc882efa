"""What all routes share: ids, error forms, headers, health, the index, and /graphql."""

import json
import logging

import anyio
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from gateway.core.errors import DatabaseUnavailable
from tests.integration.http.serving import serving
from tests.integration.http.sse_reader import HELLO
from tests.scripted_provider import ScriptedProvider, answer


async def test_a_usable_request_id_is_kept_and_any_other_replaced() -> None:
    provider = ScriptedProvider(answer("hi"))
    async with serving(provider) as served:
        for path in ("/health/live", "/nowhere", "/v1/nowhere", "/graphql"):
            kept = await served.client.get(path, headers={"X-Request-Id": "a" * 128})
            assert kept.headers["x-request-id"] == "a" * 128
            for bad in ("a" * 129, "a b", "", "\u00fc"):
                headers = {"X-Request-Id": bad.encode()}
                made = await served.client.get(path, headers=headers)  # type: ignore[arg-type]
                assert len(made.headers["x-request-id"]) == 32
                assert made.headers["x-request-id"].isalnum()
        await served.client.post("/api/v1/generate", json=HELLO, headers={"X-Request-Id": "mine"})
    assert [request.id for request in provider.requests] == ["mine"]


async def test_unknown_paths_and_methods_are_told_in_the_form_of_the_face() -> None:
    async with serving(ScriptedProvider()) as served:
        for method, path, status, code in [
            ("GET", "/nowhere", 404, "not_found"),
            ("GET", "/v1/nowhere", 404, "not_found"),
            ("POST", "/api/v1/stream/", 404, "not_found"),
            ("GET", "/api/v1/stream", 405, "method_not_allowed"),
            ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
            ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ]:
            reply = await served.client.request(method, path)
            assert reply.status_code == status, path
            error = reply.json()["error"]
            assert error["code"] == code
            assert path in error["message"]
            fields = {"message", "type", "param", "code"}
            if not path.startswith("/v1/"):
                fields = {"code", "message", "hint", "retryable", "request_id"}
                assert error["request_id"] == reply.headers["x-request-id"]
            assert set(error) == fields
            if status == 405:
                assert reply.headers["allow"] in ("POST", "GET, HEAD")


async def test_a_defect_is_logged_and_reveals_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError("a secret")

    async with serving(ScriptedProvider(), graphql=broken) as served:
        reply = await served.client.get("/graphql")
        again = await served.client.get("/health/live")
    assert reply.status_code == 500
    assert reply.json()["errors"][0]["extensions"]["code"] == "internal"
    assert "secret" not in reply.text
    [record] = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.exc_info is not None and "a secret" in str(record.exc_info[1])
    assert again.status_code == 200


async def test_graphql_gets_every_method_at_exactly_its_path() -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(f"{scope['method']} {scope['path']}")(scope, receive, send)

    async with serving(ScriptedProvider(), graphql=echo) as served:
        for method in ("GET", "POST", "OPTIONS", "PUT"):
            reply = await served.client.request(method, "/graphql", content=b"{}")
            assert (reply.status_code, reply.text) == (200, f"{method} /graphql")
        assert (await served.client.post("/graphql/", json={})).status_code == 404


async def test_browsers_of_allowed_origins_may_call_and_read_errors() -> None:
    origin = "https://chat.example"
    async with serving(ScriptedProvider(answer("hi")), cors_origins=(origin,)) as served:
        asked = await served.client.options(
            "/api/v1/stream",
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
            },
        )
        failed = await served.client.post(
            "/api/v1/stream", content=b"{", headers={"Origin": origin}
        )
        foreign = await served.client.get("/", headers={"Origin": "https://evil.example"})
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == origin
    assert failed.status_code == 400
    assert failed.headers["access-control-allow-origin"] == origin
    assert "X-Request-Id" in failed.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in foreign.headers


async def test_without_origins_there_is_no_cors() -> None:
    async with serving(ScriptedProvider()) as served:
        reply = await served.client.get("/", headers={"Origin": "https://chat.example"})
    assert "access-control-allow-origin" not in reply.headers
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["x-frame-options"] == "DENY"


async def test_the_index_names_the_faces_to_programs_and_people() -> None:
    async with serving(ScriptedProvider()) as served:
        program = await served.client.get("/")
        person = await served.client.get("/", headers={"Accept": "text/html"})
    assert program.json()["faces"]["openai"] == "/v1"
    assert "/api/v1/stream" in person.text
    assert person.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in person.headers["content-security-policy"]


async def test_readiness_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(ScriptedProvider()) as served:
        live = await served.client.get("/health/live")
        ready = await served.client.get("/health/ready")

        async def away(*_: object) -> None:
            raise DatabaseUnavailable("The database is away.")

        monkeypatch.setattr(served.gateway.model_states, "apply", away)
        monkeypatch.setattr(served.gateway.provider_states, "put", away)
        await served.gateway.tracker._guarded(served.gateway.tracker.reconcile)
        unready = await served.client.get("/health/ready")
    assert (live.status_code, live.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert unready.status_code == 503
    counts = {"written", "spooled", "replayed", "lost", "purged"}
    assert set(ready.json()["records"]) == {"pending", "journal_bytes"} | counts
    assert json.loads(unready.text)["reasons"] == ["database_unavailable"]


async def test_a_page_of_another_origin_may_not_act_unless_it_is_allowed() -> None:
    body = json.dumps({"model": "scripted/echo", "prompt": "hi"})
    plain = {"content-type": "text/plain"}
    async with serving(ScriptedProvider(answer("a")), cors_origins=("http://good",)) as served:
        codes = {}
        for origin in ("http://evil", "null", "http://good", served.url):
            reply = await served.client.post(
                "/api/v1/generate", content=body, headers=plain | {"origin": origin}
            )
            codes[origin] = reply.status_code
        looked = await served.client.get("/api/v1/models", headers={"origin": "http://evil"})
        refused = await served.client.post("/v1/completions", headers={"origin": "http://evil"})
    assert codes == {"http://evil": 403, "null": 403, "http://good": 200, served.url: 200}
    assert looked.status_code == 200
    assert "access-control-allow-origin" not in looked.headers
    assert refused.json()["error"]["code"] == "foreign_origin"


async def test_a_name_that_is_not_this_machine_s_is_refused_while_on_loopback() -> None:
    async with serving(ScriptedProvider(answer("a")), allowed_hosts=("gpu",)) as served:
        codes = {}
        for host in ("evil.example", "gpu:1", "localhost", "127.0.0.1:9"):
            reply = await served.client.get("/v1/models", headers={"host": host})
            codes[host] = reply.status_code
    assert codes == {"evil.example": 403, "gpu:1": 200, "localhost": 200, "127.0.0.1:9": 200}


async def test_a_request_with_two_hosts_is_none() -> None:
    async with (
        serving(ScriptedProvider()) as served,
        await anyio.connect_tcp("127.0.0.1", served.port) as client,
    ):
        hosts = b"Host: localhost\r\nHost: evil.example\r\n"
        await client.send(b"GET /api/v1/models HTTP/1.1\r\n%b\r\n" % hosts)
        reply = await client.receive()
    assert reply.startswith(b"HTTP/1.1 400") and b"invalid_request" in reply
