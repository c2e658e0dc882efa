"""What documents are refused, before they cost anything; asked of the schema itself."""

import pytest
from graphql import GraphQLError, get_introspection_query, parse
from strawberry.types import ExecutionResult

from gateway.core.keys import ANYBODY
from gateway.http.stream import read_stream_values
from schema.context import Context
from schema.limits import LIMITS, require_cheap, require_short
from schema.root import GatewaySchema, build_schema

CONTEXT = Context(None, ANYBODY, read_stream_values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def schema() -> GatewaySchema:
    return build_schema()


async def message_of(schema: GatewaySchema, query: str) -> str:
    result = await schema.execute(query, context_value=CONTEXT)
    assert isinstance(result, ExecutionResult)
    assert result.data is None
    assert result.errors
    return result.errors[0].message


def fragments(count: int, body: str) -> str:
    return "".join(f"fragment f{i} on Query {{ {body} }}" for i in range(count))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("{" + " " * 2**20 + "version }", "more than 24576 characters"),
        ("{ version " + "@a " * 350_000 + "}", "more than 24576 characters"),
        ("{" + "\n" * 1001 + "version }", "more than 1000 lines"),
        ("{" + "\r" * 1001 + "version }", "more than 1000 lines"),
        ("{" + "a " * 1000 + "}", "contains more than 1000 tokens"),
        ("{" + " ".join(f"a{i}: b" for i in range(2000)) + "}", "contains more than 1000 tokens"),
        ("{a" * 10_000 + "}" * 10_000, "more than 24576 characters"),
        ("{a" * 8000 + "}" * 8000, "nested too deeply"),
        ("{a" * 400 + "}" * 400, "nested too deeply"),
        ("{ version }" + fragments(30, "version"), "more than 30 definitions"),
        ("{a" * 21 + "}" * 21, "more than 20 levels of fields"),
        ("{" + " ".join(f"a{i}" for i in range(301)) + "}", "more than 300 selections"),
        ("{" + " ".join(f"a{i}: version" for i in range(11)) + "}", "more than 10 aliases"),
        ("{ version " + "@a " * 31 + "}", "more than 30 directives"),
        ("{" + "version " * 36 + "}", "more than 600 pairs of fields"),
        ("{ ...A } fragment A on Query { ...A }", "Fragment 'A' spreads itself"),
    ],
)
async def test_a_document_beyond_a_limit_is_refused(
    schema: GatewaySchema, query: str, message: str
) -> None:
    assert message in await message_of(schema, query)


@pytest.mark.parametrize(
    "query",
    [
        "{" + "a" * (24 * 1024 - 2) + "}",
        "{" + "\n" * 1000 + "a }",
        "{" + "a(b:[" + "1 " * 990 + "])}",
        "{ a }" + fragments(29, "version"),
        "{a" * 20 + "}" * 20,
        "{" + " ".join(f"a{i}" for i in range(300)) + "}",
        "{" + " ".join(f"a{i}: a" for i in range(10)) + "}",
        "{ a " + "@a " * 30 + "}",
        "{" + "a " * 35 + "}",
    ],
)
async def test_a_document_at_a_limit_is_validated(schema: GatewaySchema, query: str) -> None:
    message = await message_of(schema, query)
    assert "more than" not in message
    assert "Cannot query field 'a" in message


async def test_fragments_that_unfold_exponentially_are_refused(schema: GatewaySchema) -> None:
    links = "".join(f"fragment f{i} on Query {{...f{i + 1} ...f{i + 1}}}" for i in range(16))
    query = f"{{...f0}}{links}fragment f16 on Query {{version}}"
    assert len(query) < 700
    assert "more than 300 selections, fragments unfolded" in await message_of(schema, query)


async def test_few_errors_are_reported(schema: GatewaySchema) -> None:
    result = await schema.execute("{" + " ".join(f"a{i}" for i in range(300)) + "}")
    assert isinstance(result, ExecutionResult)
    assert result.errors is not None
    assert len(result.errors) == LIMITS.errors + 1  # the last says that there are more


async def test_several_operations_need_a_name(schema: GatewaySchema) -> None:
    query = "query A { version } query B { __typename }"
    assert "name one in 'operationName'" in await message_of(schema, query)
    named = await schema.execute(query, operation_name="B", context_value=CONTEXT)
    assert isinstance(named, ExecutionResult)
    assert named.data == {"__typename": "Query"}


def test_the_work_for_what_passes_is_bounded_by_the_limits() -> None:
    body = " ".join(f"a{i}" for i in range(9))
    apart = parse("{ version }" + fragments(29, body))
    assert require_cheap(apart).steps <= 4 * LIMITS.selections
    spreads = " ".join(f"...f{i}" for i in range(29))
    together = parse(f"{{ {spreads} }}" + fragments(29, body))
    with pytest.raises(GraphQLError, match="pairs"):
        require_cheap(together)


def test_graphiqls_introspection_leaves_room() -> None:
    query = get_introspection_query(
        specified_by_url=True,
        directive_is_repeatable=True,
        schema_description=True,
        input_value_deprecation=True,
    )
    require_short(query)
    cost = require_cheap(parse(query, max_tokens=LIMITS.tokens))
    assert cost.selections < 0.9 * LIMITS.selections
    assert cost.depth < 0.9 * LIMITS.depth
