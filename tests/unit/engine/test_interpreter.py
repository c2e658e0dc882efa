"""The interpreter, fed with what real models say, cut at every possible place."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import dialects
from gateway.core.dialects import Dialect, ReasoningFormat
from gateway.core.messages import Tool
from gateway.engine.text.interpreter import Interpreter, Piece

THINK = ReasoningFormat("<think>", "</think>")
QWEN = Dialect((dialects.HERMES,), THINK)
CODER = Dialect((dialects.TAGGED,))
LLAMA = Dialect((dialects.LLAMA, dialects.LLAMA_TAG))
MISTRAL = Dialect((dialects.MISTRAL,))
SMALL = Dialect((dialects.MISTRAL_ARGS,))
GPT_OSS = dialects.read_dialect(["tools <|channel|>analysis<|message|> to=functions.x"])
DEEPSEEK = Dialect((dialects.DEEPSEEK_FENCED,), THINK)
DEEPSEEK31 = Dialect((dialects.DEEPSEEK,), THINK)
KIMI = Dialect((dialects.KIMI,))
GRANITE = Dialect((dialects.GRANITE,))
COMMAND = dialects.read_dialect(["tools <|START_ACTION|> <|START_THINKING|>"])

WEATHER = Tool(
    "weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    },
)
TIME = Tool("time")
TOOLS = (WEATHER, TIME)

Told = tuple[str, str, list[tuple[str, str]]]
CALL = ("weather", '{"city": "Rome"}')

# What is said, and the text, the reasoning and the calls that it is.
SAID: dict[str, tuple[Dialect, str, Told]] = {
    "text": (QWEN, "Hello <b>you</b>, 1 < 2", ("Hello <b>you</b>, 1 < 2", "", [])),
    "reasoning": (
        QWEN, "<think>\nLet me see.\n</think>\n\nFour.", ("Four.", "Let me see.", [])
    ),
    "empty reasoning": (QWEN, "<think>\n\n</think>\n\nFour.", ("Four.", "", [])),
    "unended reasoning": (QWEN, "<think>Hm, and", ("", "Hm, and", [])),
    "a mention of reasoning": (QWEN, "Use <think> for it.", ("Use <think> for it.", "", [])),
    "hermes": (
        QWEN,
        'Sure.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
        ("Sure.", "", [CALL]),
    ),
    "two of hermes, reasoned": (
        QWEN,
        '<think>\nBoth.\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": '
        '{"city": "Rome"}}\n</tool_call>\n<tool_call>\n{"name": "time", "arguments": {}}\n'
        "</tool_call>",
        ("", "Both.", [CALL, ("time", "{}")]),
    ),
    "a mark inside an argument": (
        QWEN,
        '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call>"}}</tool_call>',
        ("", "", [("weather", '{"city": "</tool_call>"}')]),
    ),
    "numbers as they are written": (
        QWEN,
        '<tool_call>{"name": "time", "arguments": {"b": 1.50, "a": 12345678901234567890}}'
        "</tool_call>",
        ("", "", [("time", '{"b": 1.50, "a": 12345678901234567890}')]),
    ),
    "broken json": (
        QWEN,
        'A <tool_call>\n{"name": "weather", "arguments": {\n</tool_call> B',
        ('A <tool_call>\n{"name": "weather", "arguments": {\n</tool_call> B', "", []),
    ),
    "a call cut off": (
        QWEN,
        '<tool_call>\n{"name": "weather", "argu',
        ('<tool_call>\n{"name": "weather", "argu', "", []),
    ),
    "a call without its end": (
        QWEN,
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n',
        ("", "", [CALL]),
    ),
    "arguments that are no object": (
        QWEN,
        '<tool_call>{"name": "time", "arguments": [1]}</tool_call>',
        ('<tool_call>{"name": "time", "arguments": [1]}</tool_call>', "", []),
    ),
    "tagged": (
        CODER,
        "I look.\n<tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        ("I look.", "", [("weather", '{"city":"12","days":3}')]),
    ),
    "glm": (
        CODER,
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
        ("", "", [("weather", '{"city":"Rome","days":2}')]),
    ),
    "llama": (LLAMA, '{"name": "weather", "parameters": {"city": "Rome"}}', ("", "", [CALL])),
    "two of llama": (
        LLAMA,
        '{"name": "weather", "parameters": {"city": "Rome"}}; {"name": "time", "parameters": {}}',
        ("", "", [CALL, ("time", "{}")]),
    ),
    "llama, tagged": (
        LLAMA,
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}',
        ("", "", [CALL]),
    ),
    "json that is no call": (
        LLAMA,
        '{"name": "Ada", "parameters": {}}',
        ('{"name": "Ada", "parameters": {}}', "", []),
    ),
    "json that cannot be a call": (LLAMA, '{"answer": 4}', ('{"answer": 4}', "", [])),
    "json inside text": (
        LLAMA,
        'So: {"name": "time", "parameters": {}}',
        ('So: {"name": "time", "parameters": {}}', "", []),
    ),
    "mistral": (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}, '
        '{"name": "time", "arguments": {}}]',
        ("", "", [CALL, ("time", "{}")]),
    ),
    "mistral small": (
        SMALL,
        '[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Rome"}[TOOL_CALLS]time[ARGS]{}',
        ("", "", [CALL, ("time", "{}")]),
    ),
    "deepseek": (
        DEEPSEEK,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "Rome"}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ("", "", [CALL, ("time", "{}")]),
    ),
    "deepseek 3.1": (
        DEEPSEEK31,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Rome"}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        ("", "", [CALL]),
    ),
    "kimi": (
        KIMI,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        '<|tool_call_argument_begin|>{"city": "Rome"}<|tool_call_end|><|tool_calls_section_end|>',
        ("", "", [CALL]),
    ),
    "granite": (
        GRANITE,
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "Rome"}}]',
        ("", "", [CALL]),
    ),
    "command r": (
        COMMAND,
        "<|START_THINKING|>I look.<|END_THINKING|><|START_ACTION|>[\n"
        '{"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Rome"}}\n]'
        "<|END_ACTION|>",
        ("", "I look.", [CALL]),
    ),
    "gpt-oss": (
        GPT_OSS,
        "<|channel|>analysis<|message|>Two and two.<|end|><|start|>assistant<|channel|>final"
        "<|message|>Four.",
        ("Four.", "Two and two.", []),
    ),
    "gpt-oss calls": (
        GPT_OSS,
        "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.weather <|constrain|>json<|message|>{"city": "Rome"}',
        ("", "I look.", [CALL]),
    ),
    "gpt-oss calls, the other order": (
        GPT_OSS,
        '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": '
        '"Rome"}',
        ("", "", [CALL]),
    ),
}  # fmt: skip


def interpret(
    dialect: Dialect, parts: Sequence[str], tools: Sequence[Tool] = TOOLS, **options: bool
) -> list[Piece]:
    interpreter = Interpreter(dialect, tools, new_id=lambda: "id", **options)
    pieces = [piece for part in parts for piece in interpreter.push(part)]
    return pieces + interpreter.flush()


def told(pieces: Sequence[Piece]) -> Told:
    return (
        "".join(piece.said for piece in pieces if piece.kind == "text"),
        "".join(piece.said for piece in pieces if piece.kind == "reasoning"),
        [(call.name, call.arguments) for piece in pieces for call in piece.calls],
    )


@pytest.mark.parametrize("name", SAID)
def test_what_models_say_is_understood_wherever_it_is_cut(name: str) -> None:
    dialect, said, expected = SAID[name]
    for cut in range(len(said) + 1):
        pieces = interpret(dialect, [said[:cut], said[cut:]])
        assert told(pieces) == expected, said[:cut]
        assert "".join(piece.said for piece in pieces) == said


@pytest.mark.parametrize("name", SAID)
def test_what_models_say_is_understood_letter_by_letter(name: str) -> None:
    dialect, said, expected = SAID[name]
    assert told(interpret(dialect, list(said))) == expected


MARKS = st.sampled_from(
    ["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "time"}', "<", "\n", " "]
)


@given(parts=st.lists(st.one_of(MARKS, st.text(max_size=4)), max_size=12))
def test_nothing_is_ever_lost_or_made_up(parts: list[str]) -> None:
    pieces = interpret(QWEN, parts)
    assert "".join(piece.said for piece in pieces) == "".join(parts)
    whole = interpret(QWEN, ["".join(parts)])
    assert told(pieces) == told(whole)


def test_a_prompt_that_began_the_reasoning_is_gone_on_with() -> None:
    pieces = interpret(QWEN, ["\nI see", ".\n</thi", "nk>\n\nFour."], is_reasoning=True)
    assert told(pieces) == ("Four.", "I see.", [])


def test_without_tools_marks_of_calls_are_text() -> None:
    said = '<tool_call>{"name": "time"}</tool_call>'
    assert told(interpret(QWEN, [said], tools=())) == (said, "", [])


def test_text_is_held_back_only_while_it_may_be_a_mark() -> None:
    interpreter = Interpreter(QWEN, TOOLS, new_id=lambda: "id")
    assert told(interpreter.push("Hello")) == ("Hello", "", [])
    assert told(interpreter.push(" <tool")) == ("", "", [])
    assert told(interpreter.push("box>!")) == (" <toolbox>!", "", [])


def test_an_answer_in_json_is_held_back_only_while_it_may_be_a_call() -> None:
    interpreter = Interpreter(LLAMA, TOOLS, new_id=lambda: "id")
    assert told(interpreter.push('{ "na')) == ("", "", [])
    assert told(interpreter.push("ughty")) == ('{ "naughty', "", [])
