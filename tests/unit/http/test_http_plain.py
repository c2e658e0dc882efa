"""Plain bodies are read as if they were not: what a body asks for, and why it is refused, does not
depend on a field beside it that means nothing."""

import json
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.errors import GatewayError
from gateway.core.messages import GenerateRequest, Message, Options
from gateway.http.openai_wire import PlainChatBody, parse_chat
from gateway.http.plain import decode_plain
from gateway.http.stream import PlainStreamBody, parse_stream_request

Parse = Callable[[bytes, str, str], object]

texts = st.text(max_size=8) | st.sampled_from(["", "Hi", "\x00", "\ud83d", "\U0001f600", "\u2028"])
numbers = st.one_of(
    st.none(),
    st.integers(-3, 3),
    st.floats(-3, 3),
    st.sampled_from([2**31, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**19, 1e300, "1", True, []]),
)
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "nobody", None])
parts = st.just([{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}])
messages = st.fixed_dictionaries(
    {"role": roles, "content": texts | parts | st.none()},
    optional={"name": texts, "tool_call_id": texts, "images": st.just(["aGk="]), "other": texts},
)
option_fields = {
    name: numbers
    for name in (
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "max_tokens",
        "max_completion_tokens",
        "frequency_penalty",
        "presence_penalty",
    )
}
fields = {
    "stream": st.sampled_from([True, False, None, 1]),
    "stream_options": st.sampled_from([{"include_usage": True}, {"other": 1}, {}, None, 1]),
    "n": st.sampled_from([1, 2, None]),
    "stop": st.sampled_from(["x", ["x", ""], None]),
    "keep_alive": st.sampled_from(["5m", "five", 3, None]),
    "think": st.sampled_from([True, "low", "much", None]),
    "detached": st.sampled_from([True, None, "yes"]),
    "prompt": texts,
    "tools": st.just([{"type": "function", "function": {"name": "look"}}]),
    "guided_json": st.just({}),
    "echo": st.just(True),
}
bodies = st.fixed_dictionaries(
    {},
    optional={
        "model": texts | st.just("m"),
        "messages": st.lists(messages, max_size=3),
        "options": st.fixed_dictionaries({}, optional=option_fields),
        **option_fields,
        **fields,
    },
)
likely = st.fixed_dictionaries(
    {
        "model": st.just("m"),
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}
            ),
            max_size=3,
        ),
    },
    optional={**option_fields, "stream": st.booleans()},
)


HI = {"role": "user", "content": "Hi"}
SEEN = {**HI, "images": ["aGk="]}


def outcome(parse: Parse, data: bytes) -> object:
    try:
        return parse(data, "id", "somebody")
    except GatewayError as error:
        return type(error), error.message, error.hint, error.param


@pytest.mark.parametrize("parse", [parse_chat, parse_stream_request])
@given(body=bodies | likely, is_ascii=st.booleans())
@example(body={"model": "m", "messages": [{"role": "user", "content": "\x00"}]}, is_ascii=True)
@example(body={"model": "m", "messages": []}, is_ascii=True)
@example(body={"model": "m", "messages": [{"role": "developer", "content": ""}]}, is_ascii=True)
@example(body={"model": "m", "messages": [{"role": "tool", "content": ""}]}, is_ascii=True)
@example(body={"model": "m", "messages": [SEEN]}, is_ascii=True)
@example(body={"model": "m", "messages": [HI], "guided_json": {"a": 1}}, is_ascii=True)
@example(body={"model": "m", "messages": [HI], "options": {"top_k": -1}}, is_ascii=True)
@example(body={"model": "m", "messages": [], "seed": 2**64}, is_ascii=True)
def test_a_field_that_means_nothing_changes_nothing(
    parse: Parse, body: dict[str, object], is_ascii: bool
) -> None:
    ignored = {**body, "ignored": None}
    plain, other = (
        json.dumps(each, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
        for each in (body, ignored)
    )
    assert outcome(parse, plain) == outcome(parse, other)


@pytest.mark.parametrize("parse", [parse_chat, parse_stream_request])
@pytest.mark.parametrize("count", [10_000, 10_001])
def test_more_messages_than_may_be_are_refused(parse: Parse, count: int) -> None:
    turn = b'{"role":"user","content":""},' * (count - 1) + b'{"role":"user","content":""}'
    outcomes = [
        outcome(parse, b'{%b"model":"m","messages":[%b]}' % (other, turn))
        for other in (b"", b'"ignored":1,')
    ]
    assert outcomes[0] == outcomes[1]
    assert isinstance(outcomes[0], tuple) == (count > 10_000)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (PlainChatBody, {"stream": True, "stream_options": {"include_usage": True}, "seed": 1}),
        (PlainChatBody, {"temperature": 0, "max_completion_tokens": 9, "top_p": None}),
        (PlainStreamBody, {"options": {"temperature": 0.5, "max_tokens": 9}, "think": False}),
        (PlainStreamBody, {"detached": True}),
    ],
)
def test_what_nearly_all_send_is_plain(kind: type[object], body: dict[str, object]) -> None:
    turns = [{"role": role, "content": "Hi \\\n"} for role in ("system", "user", "assistant")]
    data = json.dumps({"model": "m", "messages": turns, **body}).encode()
    assert decode_plain(data, msgspec.json.Decoder(kind)) is not None


def test_a_plain_chat_is_read_whole() -> None:
    data = (
        b'{"model":"m","messages":[{"role":"system","content":"Be brief."},'
        b'{"role":"user","content":"Hi"}],"max_tokens":5,"max_completion_tokens":7,'
        b'"stream":true,"stream_options":{"include_usage":true}}'
    )
    asked = parse_chat(data, "id", "somebody")
    assert (asked.is_stream, asked.includes_usage) == (True, True)
    system = Message("system", Message.user("Be brief.").parts)
    assert asked.request == GenerateRequest(
        id="id",
        model="m",
        messages=(system, Message.user("Hi")),
        options=Options(max_tokens=7),
        caller="somebody",
    )
