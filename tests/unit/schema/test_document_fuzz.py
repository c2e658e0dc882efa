"""Any text is answered or refused; none of them is a defect of ours."""

from hypothesis import given, settings
from hypothesis import strategies as st
from strawberry.exceptions import MissingQueryError
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError

from gateway.core.keys import ANYBODY
from gateway.http.stream import read_stream_values
from schema.context import Context
from schema.errors import render_error
from schema.root import build_schema

SCHEMA = build_schema()
CONTEXT = Context(None, ANYBODY, read_stream_values)  # type: ignore[arg-type]
# No field that needs the services: there are none here.
TOKENS = """
    { } ( ) [ ] : ! = | & @ $ ... query mutation subscription fragment F on Query version __schema
    types name __type __typename if true null 1 -1 1e999 99999999999 " "a" \"\"\" \\ # , $a $a:Int
    @skip @include @defer extend type A
"""
WORDS = [*TOKENS.split(), "\n", "\r", "\t", "\ufeff"]

texts = st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join) | st.text()
bodies = st.recursive(
    st.sampled_from(["version", "__typename", "...F", "a: version", "__type(name: $a) { name }"]),
    lambda inner: st.lists(inner, max_size=4).map(
        lambda parts: f"... on Query {{ {' '.join(parts)} }}"
    ),
    max_leaves=6,
)
documents = st.builds(
    "query Q($a: String!) {{ {} }} fragment F on Query {{ {} }}".format, bodies, bodies
)


@settings(deadline=None)
@given(texts | documents)
async def test_no_document_is_a_defect(text: str) -> None:
    try:
        result = await SCHEMA.execute(text, variable_values={"a": "Query"}, context_value=CONTEXT)
    except (MissingQueryError, CannotGetOperationTypeError, InvalidOperationTypeError):
        return
    codes = [render_error(error)["extensions"]["code"] for error in result.errors or ()]
    assert set(codes) <= {"invalid_request"}
