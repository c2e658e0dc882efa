"""The documentation against the code: what it lists is what there is, and its links lead on."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from graphql import build_schema, parse, validate
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.core import errors
from gateway.core.errors import InvalidRequest
from gateway.core.models import Capability
from gateway.core.states import ModelState
from gateway.http import errors as http_errors
from gateway.http.access import ANY_KEY, OPEN_ROUTES, ROUTE_SCOPES
from gateway.http.app import create_app
from gateway.http.embeddings import MAX_VALUES, EmbedBody
from gateway.http.openai_wire import ChatBody, CompletionBody
from gateway.http.options import OptionsBody, to_options
from gateway.http.stream import StreamBody
from gateway.http.wire import MessageBody
from gateway.problems import Problem, describe
from gateway.services.feed import BUFFER_CHANGES, MAX_STATES
from gateway.services.gateway import Gateway
from gateway.settings import Settings
from schema.access import FIELD_SCOPES
from schema.limits import LIMITS
from schema.messages import Close
from schema.socket import SocketLimits

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def section(title: str) -> str:
    """Return what stands under a heading of docs/api.md, its own headings included."""
    level, rest = re.split(rf"^(?=#+ {title}$)", API, flags=re.MULTILINE)[1].split(" ", 1)
    return re.split(rf"^#{{1,{len(level)}}} ", rest, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of every line of every table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def ticked(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


def fences(language: str) -> list[str]:
    return [text for name, text in FENCE.findall(API) if name == language]


def documented_errors() -> dict[str, tuple[int, bool]]:
    found = {}
    for code, status, retryable, *_ in (row for row in rows(section("Errors")) if len(row) == 4):
        if name := re.fullmatch(r"`(\w+)`", code):
            assert retryable in ("yes", "no")
            found[name[1]] = (int(status), retryable == "yes")
    return found


def problems() -> list[Problem]:
    """Return what is told of one error of each class."""
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    return [
        describe(sample(kind))
        for kind in kinds
        if issubclass(kind, errors.GatewayError) and kind is not errors.GatewayError
    ]


def sample(kind: type[errors.GatewayError]) -> errors.GatewayError:
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    needed = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return kind(*[["a"] if "Sequence" in str(p.annotation) else "text" for p in needed])


def served_routes() -> set[str]:
    """Return `METHOD /path` of every route; nobody is asked, so the services may be missing."""

    async def graphql(scope: Scope, receive: Receive, send: Send) -> None: ...

    missing: dict[str, Any] = dict.fromkeys(Gateway.__struct_fields__)
    app = create_app(Gateway(**missing), Settings(), graphql)
    served = set()
    for route in app.routes:
        if isinstance(route, Route):
            # GraphQL's endpoint looks at the method itself.
            methods = (route.methods or {"GET", "POST"}) - {"HEAD"}
            served |= {f"{method} {route.path.replace(':path', '')}" for method in methods}
    return served


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def number(text: str) -> int:
    """Return what `2^64 - 1` means."""
    power, minus, _ = text.partition(" - 1")
    base, _, exponent = power.removeprefix("-").partition("^")
    value = int(base) ** int(exponent or 1)
    return (-value if text.startswith("-") else value) - bool(minus)


def test_the_error_table_is_what_problems_says() -> None:
    known = {problem.code: (problem.status, problem.retryable) for problem in problems()}
    of_routing = {code: (status, False) for status, code in http_errors._HTTP_CODES.items()}
    assert documented_errors() == known | of_routing


def test_the_errors_that_say_when_to_come_back_are_named() -> None:
    waiting = {problem.code for problem in problems() if problem.retry_after_s}
    [paragraph] = [p for p in section("Errors").split("\n\n") if p.startswith("`Retry-After`")]
    assert ticked(paragraph) == waiting | {"Retry-After"}


def test_the_route_table_is_what_the_application_serves() -> None:
    methods = ("GET ", "POST ", "PUT ", "PATCH ", "DELETE ")
    head = API.split("\n## ")[0]
    listed = [name for row in rows(head) for name in ticked(row[0]) if name.startswith(methods)]
    assert len(listed) == len(set(listed))
    assert set(listed) == served_routes()


def scopes_of(text: str) -> frozenset[str]:
    return frozenset(ticked(text)) if ticked(text) else frozenset(ANY_KEY)


def test_the_scopes_of_routes_and_fields_are_those_that_are_enforced() -> None:
    table = [row for row in rows(section("Keys")) if len(row) == 2 and row[0].startswith("`")]
    listed = {name: scopes_of(scopes) for names, scopes in table for name in ticked(names)}
    for (method, path), scopes in ROUTE_SCOPES.items():
        shown = path.replace(":path", "")
        methods = {"*": ["GET", "POST"], "WEBSOCKET": []}.get(method, [method])
        for each in methods:
            assert listed.pop(f"{each} {shown}") == scopes
    for method, path in OPEN_ROUTES:
        del listed[f"{method} {path}"]
    for fields in FIELD_SCOPES.values():
        for field, scopes in fields.items():
            assert listed.pop(field) == scopes
    assert set(listed) == {"/graphql", "infer", "manage", "admin"}


@pytest.mark.parametrize(
    ("title", "body"),
    [
        ("Request", StreamBody),
        ("Request", OptionsBody),
        ("Request", MessageBody),
        ("OpenAI", ChatBody),
        ("OpenAI", CompletionBody),
        ("Embeddings", EmbedBody),
    ],
)
def test_every_field_of_a_body_is_in_its_section(title: str, body: type[msgspec.Struct]) -> None:
    named = {name.partition(".")[0] for name in ticked(section(title))}
    assert set(body.__struct_fields__) <= named


def test_the_values_of_an_embedding_body_are_as_many_as_documented() -> None:
    assert f"may hold {MAX_VALUES:,} values" in section("Embeddings")


def test_options_have_the_ranges_of_their_table() -> None:
    table = {name: span for name, span, *_ in (row for row in rows(section("Request")) if row[2:])}
    checked = set()
    for name in OptionsBody.__struct_fields__:
        span = table[f"`{name}`"]
        found = re.match(r"(above )?(-?[\d^]+)(?:, up)? to (-?[\d^]+(?: - 1)?)", span)
        if found is None:
            continue
        low, high = number(found[2]), number(found[3])
        to_options(OptionsBody(**{name: high}))
        refused = [high + 1, low if found[1] else low - 1]
        if not found[1]:
            to_options(OptionsBody(**{name: low}))
        for value in refused:
            with pytest.raises(InvalidRequest):
                to_options(OptionsBody(**{name: value}))
        checked.add(name)
    shaped = {"stop", "stop_token_ids", "logprobs", "logit_bias"}
    assert checked == set(OptionsBody.__struct_fields__) - shaped


def test_states_and_capabilities_are_all_listed() -> None:
    table = {row[0]: ticked(row[1]) for row in rows(section("Listing models"))}
    assert table["`state`"] == set(ModelState)
    assert table["`capability`"] == set(Capability)


def test_graphql_limits_are_what_is_enforced() -> None:
    listed = {row[0].split(",")[0]: row[1] for row in rows(section("GraphQL"))}
    for name, most in msgspec.structs.asdict(LIMITS).items():
        if name == "errors":
            assert f"At most {most} mistakes" in section("GraphQL")
        else:
            [shown] = [count for what, count in listed.items() if what.startswith(name)]
            assert int(shown) == most


def test_the_ends_and_limits_of_subscriptions_are_what_the_code_says() -> None:
    text = section("Subscriptions")
    assert [int(row[0]) for row in rows(text) if row[0].isdecimal()] == sorted(Close)
    limits = SocketLimits(sockets=1, ping_interval_s=1, send_timeout_s=1)
    assert f"at most {limits.operations} operations" in text
    assert f"within {limits.init_timeout_s:g} s" in text
    assert f"behind by more than {BUFFER_CHANGES}\n" in text
    assert f"Beyond\n  {MAX_STATES} models" in text


def test_every_field_of_the_roots_is_named() -> None:
    schema = build_schema((ROOT / "schema" / "schema.graphql").read_text(encoding="utf-8"))
    roots = (schema.query_type, schema.mutation_type, schema.subscription_type)
    table = {row[0]: row[1] for row in rows(section("GraphQL")) if len(row) == 2}
    for kind, root in zip(("queries", "mutations", "subscriptions"), roots, strict=True):
        assert root is not None
        assert ticked(table[kind]) == set(root.fields)


def test_graphql_examples_are_valid_queries() -> None:
    schema = build_schema((ROOT / "schema" / "schema.graphql").read_text(encoding="utf-8"))
    queries = fences("graphql")
    assert queries
    for query in queries:
        assert validate(schema, parse(query)) == []


def test_examples_of_json_and_of_events_can_be_read() -> None:
    decoder = json.JSONDecoder()
    for text in fences("json"):
        rest = text.strip()
        while rest:
            _, end = decoder.raw_decode(rest)
            rest = rest[end:].lstrip()
    data = re.findall(r"^data: (.*)$", API, re.MULTILINE)
    assert len(data) > 10
    for line in data:
        if line != "[DONE]":
            assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_and_anchors_lead_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            text = FENCE.sub("", target.read_text(encoding="utf-8"))
            assert anchor in map(slug, HEADING.findall(text)), link
