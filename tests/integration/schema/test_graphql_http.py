"""GraphQL over HTTP: what statuses, media types and sizes a client sees."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
import httpx
import pytest

from tests.integration.clients import node
from tests.integration.schema.graphql_server import make_server

MODERN = "application/graphql-response+json"
JSON = "application/json"


@pytest.fixture(scope="module")
async def graphql_url() -> AsyncIterator[str]:
    """One server for this module: no test here changes it."""
    async with make_server().serving() as url:
        yield f"{url}/graphql"


async def post(http: httpx.AsyncClient, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return await http.post("/graphql", content=content, headers={"content-type": JSON, **headers})


def code_of(response: httpx.Response) -> str:
    [error] = response.json()["errors"]
    assert set(error["extensions"]) == {"code", "hint", "retryable"}
    return str(error["extensions"]["code"])


@pytest.mark.usefixtures("node_modules")
async def test_the_public_audit_passes_whole(graphql_url: str) -> None:
    printed = await anyio.to_thread.run_sync(node.run_script, "graphql_audit.mjs", graphql_url)
    results = json.loads(printed)
    assert [result for result in results if result["status"] != "ok"] == []
    assert len(results) == 61


@pytest.mark.parametrize(
    ("accept", "content_type", "wrong_status"),
    [
        (MODERN, MODERN, 400),
        (JSON, JSON, 200),
        ("*/*", JSON, 200),
        (f"{MODERN}, {JSON};q=0.9, text/event-stream, multipart/mixed", MODERN, 400),
        (f"{MODERN}, application/graphql+json, {JSON}, text/event-stream", MODERN, 400),
    ],
)
@pytest.mark.parametrize(
    "wrong", ["{", "{ nothing }", "query A { version } query B { version }", "fragment F on X {a}"]
)
async def test_a_wrong_document_is_told_as_the_client_can_read_it(
    http: httpx.AsyncClient, accept: str, content_type: str, wrong_status: int, wrong: str
) -> None:
    right = await post(http, {"query": "{ version }"}, accept=accept)
    assert right.status_code == 200
    assert right.headers["content-type"] == f"{content_type}; charset=utf-8"
    assert set(right.json()["data"]) == {"version"}
    answer = await post(http, {"query": wrong}, accept=accept)
    assert answer.status_code == wrong_status
    assert answer.headers["content-type"] == f"{content_type}; charset=utf-8"
    assert "data" not in answer.json()
    assert answer.json()["errors"][0]["extensions"]["code"] == "invalid_request"


async def test_a_failed_field_is_a_200_with_null_data(http: httpx.AsyncClient) -> None:
    query = "{ availableModels(first: 501) { totalCount } }"
    answer = await post(http, {"query": query}, accept=MODERN)
    assert answer.status_code == 200
    assert answer.json()["data"] is None
    assert code_of(answer) == "invalid_request"


@pytest.mark.parametrize(
    ("operation", "status"),
    [("query { version }", 200), ("mutation { __typename }", 405)],
)
async def test_get_reads_and_never_writes(
    http: httpx.AsyncClient, operation: str, status: int
) -> None:
    answer = await http.get("/graphql", params={"query": operation}, headers={"accept": JSON})
    assert answer.status_code == status
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_other_methods_are_told_what_is_allowed(http: httpx.AsyncClient, method: str) -> None:
    answer = await http.request(method, "/graphql")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"


@pytest.mark.parametrize(
    "accept", ["text/html", "image/*", f"{JSON};q=0", "text/event-stream;q=0", "application/xml"]
)
async def test_a_client_that_reads_no_json_and_no_events_is_told_406(
    http: httpx.AsyncClient, accept: str
) -> None:
    answer = await post(http, {"query": "{ version }"}, accept=accept)
    assert answer.status_code == 406
    assert code_of(answer) == "invalid_request"


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/jsonp",
    ],
)
async def test_a_body_of_another_type_is_told_415(
    http: httpx.AsyncClient, content_type: str
) -> None:
    answer = await post(http, {"query": "{ version }"}, content_type=content_type)
    assert answer.status_code == 415
    assert answer.headers["accept"] == JSON


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_a_form_of_another_site_is_forbidden(
    http: httpx.AsyncClient, content_type: str
) -> None:
    body = {"query": "{ version }"}
    answer = await post(http, body, content_type=content_type, origin="https://evil.example")
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'[{"query":"{version}"}]',
        b'"{version}"',
        b'{"query":null}',
        b'{"query":""}',
        b'{"query":1}',
        b'{"query":"{version}","variables":[]}',
        b'{"query":"{version}","variables":"{}"}',
        b'{"query":"{version}","variables":{"a":NaN}}',
        b'{"query":"{version}","variables":{"a":' + b"9" * 5000 + b"}}",
        b'{"query":"{version}","variables":{"a":' + b"[" * 100_000 + b"}}",
        b'{"query":"{version}","extensions":7}',
        b'{"query":"{version}","operationName":7}',
        b'{"query":"{version}\xff"}',
        b'{"query":"\\ud800"}',
        '{"query":"{version}"}'.encode("utf-16"),
    ],
)
async def test_what_is_no_request_is_told_400(http: httpx.AsyncClient, body: bytes) -> None:
    for accept in (JSON, MODERN):
        answer = await post(http, body, accept=accept)
        assert answer.status_code == 400
        assert code_of(answer) == "invalid_request"


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"query":"{version}"}',
        '{"query":"\ufeff{version}"}'.encode(),
        b'{"query":"{version}","operationName":"","variables":null,"extensions":{"a":1},"b":2}',
    ],
)
async def test_harmless_oddities_are_read(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await post(http, body)
    assert answer.status_code == 200
    assert "errors" not in answer.json()


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_body_beyond_the_limit_is_told_413(
    http: httpx.AsyncClient, is_announced: bool
) -> None:
    body = b'{"query":"{version}","x":"' + b"x" * 2**20 + b'"}'

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    answer = await http.post(
        "/graphql", content=body if is_announced else chunks(), headers={"content-type": JSON}
    )
    assert answer.status_code == 413
    assert code_of(answer) == "payload_too_large"


@pytest.mark.parametrize(
    "variables", [{"a": "x" * (256 * 1024)}, {"a": [[1] * 100] * 50}], ids=["bytes", "values"]
)
async def test_variables_beyond_the_limit_are_told_413(
    http: httpx.AsyncClient, variables: dict[str, Any]
) -> None:
    answer = await post(http, {"query": "{ version }", "variables": variables})
    assert answer.status_code == 413


async def test_a_document_beyond_the_limits_is_an_error_of_the_document(
    http: httpx.AsyncClient,
) -> None:
    fragments = "".join(f"fragment f{i} on Query {{ ...f{i + 1} ...f{i + 1} }}" for i in range(25))
    query = "{ ...f0 }" + fragments + "fragment f25 on Query { version }"
    for accept, status in ((JSON, 200), (MODERN, 400)):
        answer = await post(http, {"query": query}, accept=accept)
        assert answer.status_code == status
        [error] = answer.json()["errors"]
        assert error["message"] == "The document has more than 300 selections, fragments unfolded."
        assert error["extensions"]["hint"] == "Split it into several queries."


async def test_variables_that_do_not_fit_are_an_error_of_the_document(
    http: httpx.AsyncClient,
) -> None:
    query = "query($first: Int!) { availableModels(first: $first) { totalCount } }"
    body = {"query": query, "variables": {"first": "many"}}
    assert (await post(http, body, accept=JSON)).status_code == 200
    answer = await post(http, body, accept=MODERN)
    assert answer.status_code == 400
    assert code_of(answer) == "invalid_request"
