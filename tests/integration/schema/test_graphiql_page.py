"""GraphiQL: there in development, self-contained, and gone in production."""

import base64
import hashlib
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from graphql import get_introspection_query

from tests.integration.schema.graphql_server import GraphQLServer

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


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
