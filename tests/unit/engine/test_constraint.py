"""Constraints under a model that knows nothing: whatever it draws must follow the schema."""

import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core.dialects import Dialect
from gateway.core.errors import InvalidRequest
from gateway.core.messages import GenerateRequest, ResponseFormat
from gateway.engine.text.grammar import MAX_SCHEMA_BYTES, GrammarWriter
from gateway.engine.text.vocabulary import Vocabulary
from tests.tiny_tokenizers import byte_tokenizer

torch = pytest.importorskip("torch")

NAMES = st.sampled_from(["a", "b", "name", "ünï", 'q"uote', "", "x y"])
SCALARS = st.one_of(
    st.just({"type": "string"}),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
    st.just({"type": "integer", "minimum": -5, "maximum": 120}),
    st.just({"type": "number"}),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"type": "string", "pattern": "^[a-f]{2,4}$"}),
    st.just({"type": "string", "format": "date"}),
    st.builds(
        lambda values: {"enum": values},
        st.lists(
            st.one_of(st.integers(-(2**53), 2**53), st.text(max_size=5), st.none()),
            min_size=1,
            max_size=4,
        ),
    ),
    st.builds(lambda value: {"const": value}, st.text(max_size=8)),
)


def compound(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    arrays = st.builds(
        lambda items, least: {
            "type": "array", "items": items, "minItems": least, "maxItems": least + 2
        },
        inner,
        st.integers(0, 2),
    )  # fmt: skip
    objects = st.builds(
        lambda properties, closed, cut: {
            "type": "object",
            "properties": properties,
            "required": sorted(properties)[:cut],
            "additionalProperties": not closed,
        },
        st.dictionaries(NAMES, inner, max_size=4),
        st.booleans(),
        st.integers(0, 4),
    )
    choices = st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3))
    return st.one_of(arrays, objects, choices)


SCHEMAS = st.recursive(SCALARS, compound, max_leaves=8)


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    tokenizer = byte_tokenizer()
    yield Vocabulary(tokenizer, len(tokenizer) + 7, frozenset({tokenizer.eos_token_id}))


def grammar_of(schema: dict[str, Any] | None) -> str:
    kind = "json_object" if schema is None else "json_schema"
    request = GenerateRequest(id="r", model="m", response_format=ResponseFormat(kind, schema))
    return GrammarWriter(Dialect(), {}).write(request, is_raw=False, is_reasoning=False)


def draw(vocabulary: Vocabulary, grammar: str, seed: int, limit: int = 600) -> tuple[bytes, bool]:
    """Draw tokens, all as likely; return the answer and whether it came to its end."""
    constraint = vocabulary.compile(grammar)
    chance = random.Random(seed)
    said = b""
    for _ in range(limit):
        choices = constraint.allowed().nonzero().flatten().tolist()
        # Ends are preferred, or an answer of equal chances would seldom come to one.
        closing = [token for token in choices if vocabulary.bytes_of(token) in (b'"', b"}", b"]")]
        token = chance.choice(closing if closing and chance.random() < 0.5 else choices)
        if token == 0:
            return said, True
        said += vocabulary.bytes_of(token)
        constraint.accept(token)
        if constraint.is_over:
            return said, True
    return said, False


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_whatever_is_drawn_follows_the_schema(
    vocabulary: Vocabulary, schema: dict[str, Any], seed: int
) -> None:
    said, is_whole = draw(vocabulary, grammar_of(schema), seed)
    if is_whole:
        jsonschema.validate(json.loads(said), schema)


def test_most_answers_come_to_an_end(vocabulary: Vocabulary) -> None:
    grammar = grammar_of({"type": "object", "properties": {"a": {"type": "integer"}}})
    ends = [draw(vocabulary, grammar, seed)[1] for seed in range(30)]
    assert sum(ends) > 20


def test_any_object_is_an_object(vocabulary: Vocabulary) -> None:
    for seed in range(20):
        said, is_whole = draw(vocabulary, grammar_of(None), seed)
        assert said.startswith(b"{")
        if is_whole:
            assert isinstance(json.loads(said), dict)


def test_the_end_is_allowed_only_where_the_grammar_may_end(vocabulary: Vocabulary) -> None:
    constraint = vocabulary.compile(grammar_of({"type": "integer"}))
    assert not constraint.allowed()[0]
    seven = next(t for t in range(1, 257) if vocabulary.bytes_of(t) == b"7")
    constraint.accept(seven)
    assert constraint.allowed()[0]
    # The model's logits may be wider than its tokenizer: what no token stands for is never said.
    assert len(constraint.allowed()) == 264
    assert not constraint.allowed()[257:].any()


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "text"}, "^failed to compile JSON schema: Invalid type: text$"),
        ({"$ref": "#/$defs/nowhere"}, "does not exist"),
        ({"$ref": "https://example.invalid/schema.json"}, "example.invalid"),
        ({"type": "string", "pattern": "(a+"}, "unclosed group"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "shoe-size"}, "shoe-size"),
        (nested(300), "recursion limit"),
        (nested(5000), "too deep"),
        ({"enum": [f"value {n}" for n in range(100_000)]}, "bytes"),
        ({"anyOf": [{"const": n} for n in range(500)]}, "anyOf has 500 parts"),
        ({"enum": [2**53 + 1]}, "integer above"),
        ({"properties": {"a": {"const": -(2**53) - 1}}}, "integer above"),
        ({"type": "integer", "multipleOf": 1_234_567}, "multipleOf"),
        ({"allOf": [{"multipleOf": 9_973}, {"multipleOf": 9_967}]}, "multipleOf"),
        ({"type": "number", "multipleOf": 0.0000001}, "multipleOf"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_with_the_reason(
    vocabulary: Vocabulary, schema: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        vocabulary.compile(grammar_of(schema)).allowed()


def test_a_schema_that_proves_too_complex_ends_the_answer_with_the_reason(
    vocabulary: Vocabulary,
) -> None:
    schema = {"type": "object", "properties": {f"p{n}": {} for n in range(2_900)}}
    with pytest.raises(InvalidRequest, match="too complex"):
        draw(vocabulary, grammar_of({**schema, "required": ["p2899"]}), seed=1)


def test_a_caller_cannot_change_the_compiler(vocabulary: Vocabulary) -> None:
    lenient = {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}
    with pytest.raises(InvalidRequest, match="uniqueItems"):
        vocabulary.compile(grammar_of(lenient))


def test_a_schema_of_the_largest_size_is_taken(vocabulary: Vocabulary) -> None:
    schema = {"enum": ["x" * (MAX_SCHEMA_BYTES // 2)]}
    assert vocabulary.compile(grammar_of(schema)).allowed().any()
