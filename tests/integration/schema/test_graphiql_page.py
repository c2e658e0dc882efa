"""GraphiQL: there in development, self-contained, and gone in production."""

import base64
import hashlib
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from graphql import get_introspection_query

from gateway.core.keys import KeyOrder, KeyScope
from tests.integration.browser import CHROMIUM, browsing
from tests.integration.schema.graphql_server import GraphQLServer, make_loading_server

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"

RESULT = "document.querySelector('.result-window').textContent"


@pytest.fixture
async def development(graphql_server: GraphQLServer) -> AsyncIterator[httpx.AsyncClient]:
    graphql_server.ide = True
    async with (
        graphql_server.serving() as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        yield client


async def test_a_browser_gets_the_page_in_development(development: httpx.AsyncClient) -> None:
    answer = await development.get("/graphql", headers={"accept": BROWSER})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert '<div id="graphiql">' in answer.text


async def test_the_page_needs_no_other_address(development: httpx.AsyncClient) -> None:
    answer = await development.get("/graphql", headers={"accept": BROWSER})
    markup = re.sub(r"<(script|style)>.*?</\1>", "", answer.text, flags=re.DOTALL)
    assert re.findall(r"(?:src|href)\s*=\s*\"(?!data:)", markup) == []
    assert "http" not in markup
    styles = "".join(re.findall(r"<style>(.*?)</style>", answer.text, flags=re.DOTALL))
    assert re.findall(r"@import|url\((?!data:)[^)]*\)", styles) == []


async def test_the_browser_is_told_to_run_these_scripts_only(
    development: httpx.AsyncClient,
) -> None:
    answer = await development.get("/graphql", headers={"accept": BROWSER})
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    scripts = re.findall(rb"<script>(.*?)</script>", answer.content, flags=re.DOTALL)
    assert len(scripts) == 4
    assert policy["script-src"].split() == [
        f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
        for script in scripts
    ]
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"


async def test_with_keys_a_browser_reads_the_page_and_nothing_else(
    graphql_server: GraphQLServer,
) -> None:
    graphql_server.ide = True
    async with graphql_server.serving() as url, httpx.AsyncClient(trust_env=False) as client:
        order = KeyOrder("a", (KeyScope.INFER,))
        _, key = await graphql_server.gateway.keys.create(order)
        address, browser = f"{url}/graphql", {"accept": BROWSER}
        page = await client.get(address, headers=browser)
        assert page.status_code == 200 and '<form id="key" hidden>' in page.text
        for query in (get_introspection_query(), "{ version }"):
            refused = [
                await client.get(address, params={"query": query}, headers=browser),
                await client.post(address, json={"query": query}, headers=browser),
            ]
            assert [reply.status_code for reply in refused] == [401, 401]
        known = {"authorization": f"Bearer {key}"}
        answer = await client.post(address, json={"query": "{ version }"}, headers=known)
        assert answer.json()["data"]["version"]


async def test_with_keys_a_browser_is_asked_for_one_in_production(
    graphql_server: GraphQLServer,
) -> None:
    async with graphql_server.serving() as url, httpx.AsyncClient(trust_env=False) as client:
        await graphql_server.gateway.keys.create(KeyOrder("a", (KeyScope.INFER,)))
        reply = await client.get(f"{url}/graphql", headers={"accept": BROWSER})
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == 'Bearer realm="gateway"'
    assert reply.json()["errors"][0]["extensions"]["code"] == "unauthenticated"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
async def test_graphiql_asks_for_a_key_and_then_queries_and_subscribes_with_it() -> None:
    server = make_loading_server()
    server.ide, server.is_tracking = True, True
    async with server.serving() as url, browsing() as page:
        _, key = await server.gateway.keys.create(KeyOrder("a", (KeyScope.INFER,)))
        await page.open(f"{url}/graphql")
        await page.until("!document.querySelector('#key').hidden")
        await page.type("#key-text", key)
        await page.press_enter()
        # With the schema, the button that runs the query knows it; the answer is shown as text.
        await page.until("document.querySelector('.graphiql-execute-button')")
        await page.click(".graphiql-execute-button")
        await page.until(f"{RESULT}.includes('providerErrors')")
        page.complaints.clear()
        subscription = "subscription { modelStateChanged { snapshot } }"
        shown = "document.querySelector('.graphiql-query-editor .CodeMirror').CodeMirror"
        await page.run(f"{shown}.setValue({subscription!r})")
        # It takes note of what is typed a moment later, and by that it chooses the protocol.
        await page.until("localStorage['graphiql:query']?.includes('subscription')")
        await page.click(".graphiql-execute-button")
        await page.until(f"{RESULT}.includes('snapshot')")
        assert page.complaints == []


async def test_programs_get_no_page_in_development(development: httpx.AsyncClient) -> None:
    assert (await development.get("/graphql")).status_code == 400
    answer = await development.get(
        "/graphql", params={"query": "{ version }"}, headers={"accept": BROWSER}
    )
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


async def test_a_browser_gets_no_page_in_production(http: httpx.AsyncClient) -> None:
    answer = await http.get("/graphql", headers={"accept": BROWSER})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


async def test_the_introspection_of_graphiql_passes_the_limits(http: httpx.AsyncClient) -> None:
    query = get_introspection_query(
        specified_by_url=True,
        directive_is_repeatable=True,
        schema_description=True,
        input_value_deprecation=True,
    )
    reply = (await http.post("/graphql", json={"query": query})).json()
    assert "errors" not in reply
    types = {entry["name"]: entry for entry in reply["data"]["__schema"]["types"]}
    described = [
        field
        for name, entry in types.items()
        if not name.startswith("__")
        for field in [entry, *(entry["fields"] or []), *(entry["enumValues"] or [])]
    ]
    assert [item["name"] for item in described if not item["description"]] == []
