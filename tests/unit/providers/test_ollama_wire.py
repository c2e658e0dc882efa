"""Ollama's format without a network: requests to bytes and lines to events."""

import json

import pytest

from gateway.core.errors import (
    IncompleteStream,
    InvalidRequest,
    ProviderProtocolError,
    UnsupportedCapability,
)
from gateway.core.events import (
    Event,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from gateway.core.messages import (
    GenerateRequest,
    Message,
    Options,
    ResponseFormat,
    Said,
    TextPart,
    Tool,
    ToolCall,
)
from gateway.core.names import ModelRef
from gateway.providers.ollama_request_wire import encode_request
from gateway.providers.ollama_stream_wire import MAX_LINE_BYTES, AnswerReader

REF = ModelRef("ollama", "llama3.2:latest")


def reader(max_line_bytes: int = MAX_LINE_BYTES) -> AnswerReader:
    return AnswerReader("r1", REF, max_line_bytes)


def test_an_answer_is_gone_on_with_as_an_open_message() -> None:
    said = Said(text="Hel", reasoning="Hm", tokens=3)
    path, data = encode_request(chat(said=said, options=Options(max_tokens=10)), REF)
    body = json.loads(data)
    assert path == "/api/chat"
    assert body["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hel", "thinking": "Hm"},
    ]
    assert body["options"] == {"num_predict": 7}
    # A prompt goes through the template as a message of a user would.
    path, data = encode_request(chat(messages=(), prompt="Hi", said=said), REF)
    assert (path, json.loads(data)["messages"]) == ("/api/chat", body["messages"])
    path, data = encode_request(chat(messages=(), prompt="Hi", raw=True, said=said), REF)
    assert (path, json.loads(data)["prompt"]) == ("/api/generate", "HiHel")


def chat(**fields: object) -> GenerateRequest:
    messages = (Message("user", (TextPart("Hi"),)),)
    return GenerateRequest(**{"id": "r1", "model": "x", "messages": messages, **fields})  # type: ignore[arg-type]


def encoded(request: GenerateRequest, num_ctx: int | None = None) -> dict[str, object]:
    body: dict[str, object] = json.loads(encode_request(request, REF, num_ctx)[1])
    return body


def test_a_plain_chat_says_nothing_that_was_not_asked_for() -> None:
    assert encode_request(chat(), REF)[0] == "/api/chat"
    assert encoded(chat()) == {
        "model": "llama3.2:latest",
        "stream": True,
        "messages": [{"role": "user", "content": "Hi"}],
        "options": {},
    }


def test_an_empty_prompt_is_a_prompt() -> None:
    path, body = encode_request(chat(messages=(), prompt=""), REF)
    assert path == "/api/generate"
    assert json.loads(body)["prompt"] == ""


def test_zero_is_a_value_and_none_is_not() -> None:
    options = encoded(chat(options=Options(temperature=0.0, seed=0, max_tokens=0)))["options"]
    assert options == {"temperature": 0.0, "seed": 0, "num_predict": 0}


@pytest.mark.parametrize("num_ctx", [None, 4096])
def test_only_the_operator_sets_the_context(num_ctx: int | None) -> None:
    """T17"""
    options = encoded(chat(options=Options(max_tokens=5)), num_ctx)["options"]
    assert isinstance(options, dict)
    assert options.get("num_ctx") == num_ctx


@pytest.mark.parametrize(
    "wanted, sent",
    [
        (None, None),
        (ResponseFormat("text"), None),
        (ResponseFormat("json_object"), "json"),
        (ResponseFormat("json_schema", {"type": "array"}), {"type": "array"}),
    ],
)
def test_formats(wanted: ResponseFormat | None, sent: object) -> None:
    assert encoded(chat(response_format=wanted)).get("format") == sent


@pytest.mark.parametrize(
    "seconds, sent", [(None, None), (0.0, "0"), (-1.0, "-1"), (300.0, "300"), (0.5, "0.5")]
)
def test_keep_alive_is_a_number_of_seconds(seconds: float | None, sent: str | None) -> None:
    body = encode_request(chat(keep_alive_s=seconds), REF)[1].decode()
    assert ("keep_alive" in body) == (sent is not None)
    assert sent is None or f'"keep_alive":{sent}' in body


def test_tools_without_parameters_get_the_empty_schema() -> None:
    (tool,) = encoded(chat(tools=(Tool("f"),)))["tools"]  # type: ignore[misc]
    assert tool["function"]["parameters"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize("arguments", ["", "  ", "{}"])
def test_a_call_without_arguments_has_an_empty_object(arguments: str) -> None:
    call = Message("assistant", tool_calls=(ToolCall("1", "f", arguments),))
    assert b'"arguments":{}' in encode_request(chat(messages=(call,)), REF)[1]


@pytest.mark.parametrize(
    "arguments", ["x", "[]", "1", '"{}"', "null", "{", "[" * 100_000, '{"a":1}}']
)
def test_arguments_in_the_history_must_be_an_object(arguments: str) -> None:
    call = Message("assistant", tool_calls=(ToolCall("1", "f", arguments),))
    with pytest.raises(InvalidRequest) as caught:
        encode_request(chat(messages=(call,)), REF)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("think", [True, False, "low", "medium", "high", "max"])
def test_think_levels_are_sent_as_they_are(think: bool | str) -> None:
    assert encoded(chat(think=think))["think"] == think


@pytest.mark.parametrize(
    "raw, text",
    [
        (b'{"z": 1, "a":{"c":2,"b":3}}', '{"z": 1, "a":{"c":2,"b":3}}'),
        (b'{"n":12345678901234567890123}', '{"n":12345678901234567890123}'),
        (b'"{\\"a\\":1}"', '{"a":1}'),
        (b'""', "{}"),
        (b"null", "{}"),
    ],
)
def test_arguments_of_a_call_are_kept_to_the_letter(raw: bytes, text: str) -> None:
    line = b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":%b}}]}}\n' % raw
    (_, delta) = list(reader().feed(line))
    assert delta == ToolCallDelta(0, ToolCall("call_r1_0", "f", text))


def test_calls_are_numbered_over_all_lines() -> None:
    line = b'{"message":{"tool_calls":[{"function":{"name":"f"}}]}}\n'
    events = [event for event in reader().feed(line * 3) if isinstance(event, ToolCallDelta)]
    assert [(event.index, event.call.id) for event in events] == [
        (0, "call_r1_0"),
        (1, "call_r1_1"),
        (2, "call_r1_2"),
    ]


def test_one_line_is_one_token_whatever_it_holds() -> None:
    line = b'{"message":{"thinking":"a","content":"b","tool_calls":[{"function":{"name":"f"}}]}}\n'
    answer = reader()
    events = list(answer.feed(line + b'{"done":true}\n'))
    assert sum(getattr(event, "tokens", 0) for event in events) == 1
    assert answer.finished == Finished("tool_calls", Usage(0, 1))


def test_what_came_before_an_error_is_given_first() -> None:
    seen: list[Event] = []

    feed = reader().feed(b'{"response":"a"}\nrubbish\n')
    with pytest.raises(ProviderProtocolError):
        for event in feed:
            seen.append(event)
    assert seen == [Started(REF), TextDelta("a")]


def test_the_bound_on_lines_holds_for_whole_and_unfinished_ones() -> None:
    fits = b'{"response":"%b"}' % (b"x" * 87)
    assert len(fits) == 102
    assert len(list(reader(102).feed(fits + b"\n"))) == 2
    with pytest.raises(ProviderProtocolError):
        list(reader(101).feed(fits + b"\n"))
    with pytest.raises(ProviderProtocolError):
        list(reader(101).feed(fits))


def test_many_short_lines_in_one_chunk_are_no_long_line() -> None:
    assert len(list(reader(100).feed(b'{"response":"a"}\n' * 1000))) == 1001


@pytest.mark.parametrize("lines", [b'{"response":\n"a"}\n', b'{"response":"a"} {"response":"b"}\n'])
def test_a_line_is_one_value_also_among_others(lines: bytes) -> None:
    good = b'{"response":"a"}\n'
    answer, seen = reader(), list[Event]()
    with pytest.raises(ProviderProtocolError):
        seen.extend(answer.feed(good * 2 + lines + good))
    assert [event for event in seen if isinstance(event, TextDelta)] == [TextDelta("a")] * 2


def test_the_end_needs_no_line_end_but_must_be_there() -> None:
    answer = reader()
    assert list(answer.feed(b'{"done":true,"response":"a"}')) == []
    assert list(answer.end()) == [Started(REF), TextDelta("a")]
    assert answer.finished is not None
    for rest in (b"", b'{"response":"a"}\n', b'{"response":"a"}'):
        cut = reader()
        list(cut.feed(rest))
        with pytest.raises(IncompleteStream):
            list(cut.end())


def test_null_fields_are_absent_fields() -> None:
    line = (
        b'{"message":{"content":null,"thinking":null,"tool_calls":null},"error":null,'
        b'"done_reason":null,"eval_count":null,"prompt_eval_count":null,"done":true}\n'
    )
    answer = reader()
    assert list(answer.feed(line)) == [Started(REF)]
    assert answer.finished == Finished("stop", Usage())


def test_tools_beside_a_prompt_go_to_chat_which_takes_them() -> None:
    request = chat(messages=(), prompt="weather?", tools=(Tool("look"),))
    path, body = encode_request(request, REF)
    assert path == "/api/chat"
    assert b'"tools"' in body
    assert b'"weather?"' in body


@pytest.mark.parametrize(
    ("count", "sent"),
    [(None, {}), (0, {"logprobs": True}), (3, {"logprobs": True, "top_logprobs": 3})],
)
def test_log_probabilities_are_passed_on(count: int | None, sent: dict[str, object]) -> None:
    body = encoded(chat(options=Options(logprobs=count)))
    assert {key: body[key] for key in ("logprobs", "top_logprobs") if key in body} == sent


@pytest.mark.parametrize(
    ("options", "param"),
    [
        (Options(logit_bias=((1, 1.0),)), "logit_bias"),
        (Options(stop_ids=(1,)), "stop_token_ids"),
    ],
)
def test_what_ollama_cannot_be_told_is_refused(options: Options, param: str) -> None:
    with pytest.raises(UnsupportedCapability) as caught:
        encoded(chat(options=options))
    assert caught.value.param == param


def test_log_probabilities_come_with_what_they_are_of() -> None:
    def line(message: dict[str, object], *tokens: str) -> bytes:
        logprobs = [
            {
                "token": token,
                "logprob": -0.5,
                "bytes": list(token.encode()),
                "top_logprobs": [{"token": "x", "logprob": -0.1}],
            }
            for token in tokens
        ]
        return json.dumps({"message": message, "logprobs": logprobs}).encode() + b"\n"

    lines = line({"thinking": "h"}, "h") + line({"content": "é"}, "é") + line({"content": ""}, "z")
    _, thought, text, silent = reader().feed(lines)
    assert isinstance(thought, ReasoningDelta) and thought.logprobs[0].token == "h"
    top = (TokenLogprob("x", b"x", -0.1),)
    assert text == TextDelta("é", 1, (TokenLogprob("é", "é".encode(), -0.5, top),))
    # A token may say nothing that can be shown yet, and still have been drawn.
    assert isinstance(silent, TextDelta) and (silent.text, len(silent.logprobs)) == ("", 1)
