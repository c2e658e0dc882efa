"""Reads the tool calls out of what a model said between its marks. Pure.

Sources: the chat templates and model cards of Qwen, Hermes, Llama 3, Mistral, DeepSeek, Kimi,
Command R, GLM, Granite, Phi 4 and gpt-oss. What cannot be read whole is read not at all.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from gateway.core.messages import Tool

Call = tuple[str, str]
"""The name of a tool, and its arguments: a JSON object as text, just as the model wrote it."""

_NAMES = ("name", "tool_name", "function")
_ARGUMENTS = ("arguments", "parameters", "args")
_BARE_KEYS = ('{"name"', '{"function"', '{"type"', '{"parameters"', '{"arguments"')

# What stands before the JSON of the arguments, with the name in it, and what stands after.
_HEADED = (
    (re.compile(r"([\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]"), re.compile(r"(?:\[TOOL_CALLS\])?")),
    (
        re.compile(r"<｜tool▁call▁begin｜>function<｜tool▁sep｜>([^\n]+)\n```json\n"),
        re.compile(r"\s*```\s*<｜tool▁call▁end｜>"),
    ),
    (
        re.compile(r"<｜tool▁call▁begin｜>([^<\n]+)<｜tool▁sep｜>"),
        re.compile(r"\s*<｜tool▁call▁end｜>"),
    ),
    (
        re.compile(r"<\|tool_call_begin\|>\s*functions\.([\w.-]+):\d+\s*"
                   r"<\|tool_call_argument_begin\|>"),
        re.compile(r"\s*<\|tool_call_end\|>"),
    ),
    (
        re.compile(r"([\w.-]+)\s*(?:<\|channel\|>\w+\s*)?(?:<\|constrain\|>)?\w*<\|message\|>"),
        re.compile(r"(?:<\|call\|>)?"),
    ),
)  # fmt: skip
_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>(.*?)</parameter>", re.DOTALL)
_GLM_NAME = re.compile(r"\s*([\w.-]+)\s*(?=<arg_key>|$)")
_GLM_PAIR = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)


def read_calls(body: str, tools: Sequence[Tool]) -> list[Call]:
    """Return the calls that `body` makes; empty where any part of it is no call."""
    text = body.strip()
    try:
        if text.startswith(("{", "[")):
            return _read_objects(text)
        if text.startswith("<function="):
            return _read_functions(text, tools)
        if "<arg_key>" in text:
            return _read_pairs(text, tools)
        return _read_headed(text)
    except (ValueError, KeyError, RecursionError, msgspec.MsgspecError):
        return []


def read_bare_calls(text: str, tools: Sequence[Tool]) -> list[Call]:
    """Return the calls of a text without marks: any of a tool that there is not makes it text."""
    calls = read_calls(text, tools)
    known = {tool.name for tool in tools}
    return calls if all(name in known for name, _ in calls) else []


def may_be_bare_call(text: str) -> bool:
    """Tell whether an answer that begins like this may be a call without marks."""
    start = re.sub(r"\s", "", text[:80]).removeprefix("[")
    return any(start.startswith(key) or key.startswith(start) for key in _BARE_KEYS)


def is_inside_string(body: str) -> bool:
    """Tell whether JSON that is cut here is cut inside a string: a mark there is only text."""
    quotes = re.sub(r"\\.", "", body, flags=re.DOTALL).count('"')
    return body.lstrip().startswith(("{", "[")) and quotes % 2 == 1


def _read_objects(text: str) -> list[Call]:
    return [_read_object(item) for value in _split_values(text) for item in _flatten(value)]


def _split_values(text: str) -> Iterator[str]:
    """Yield the JSON values of a text, which may stand one after another or be joined by `;`."""
    decoder = json.JSONDecoder()
    position = 0
    while position < len(text):
        _, end = decoder.raw_decode(text, position)
        yield text[position:end]
        rest = text[end:]
        position = len(text) - len(rest.lstrip(" \t\r\n;,"))


def _flatten(value: str) -> list[msgspec.Raw]:
    if value.startswith("["):
        return msgspec.json.decode(value, type=list[msgspec.Raw])
    return [msgspec.Raw(value.encode())]


def _read_object(raw: msgspec.Raw) -> Call:
    # Raw keeps the order of the keys and every digit of the numbers.
    fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    inner = fields.get("function")
    if inner is not None and bytes(inner)[:1] == b"{":
        return _read_object(inner)
    name = next((fields[key] for key in _NAMES if key in fields), msgspec.Raw(b"null"))
    given = next((fields[key] for key in _ARGUMENTS if key in fields), msgspec.Raw(b"{}"))
    return msgspec.json.decode(name, type=str), _read_arguments(bytes(given).decode())


def _read_arguments(text: str) -> str:
    if text.startswith('"'):  # some write the JSON of the arguments as a string
        text = msgspec.json.decode(text, type=str).strip()
    if text in ("null", ""):
        return "{}"
    msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    return text


def _read_headed(text: str) -> list[Call]:
    for head, tail in _HEADED:
        if head.match(text):
            return list(_split_headed(text, head, tail))
    return []


def _split_headed(text: str, head: re.Pattern[str], tail: re.Pattern[str]) -> Iterator[Call]:
    position = 0
    while position < len(text):
        start = head.match(text, position)
        if start is None:
            raise ValueError("no call begins here")
        _, end = json.JSONDecoder().raw_decode(text, _skip_space(text, start.end()))
        yield start[1].strip(), _read_arguments(text[start.end() : end].strip())
        closed = tail.match(text, end)
        if closed is None:
            raise ValueError("the call does not end")
        position = _skip_space(text, closed.end())


def _skip_space(text: str, position: int) -> int:
    return position + len(text[position:]) - len(text[position:].lstrip())


def _read_functions(text: str, tools: Sequence[Tool]) -> list[Call]:
    if _FUNCTION.sub("", text).strip():
        return []
    return [
        (name.strip(), _to_arguments(name.strip(), _PARAMETER.findall(body), tools))
        for name, body in _FUNCTION.findall(text)
    ]


def _read_pairs(text: str, tools: Sequence[Tool]) -> list[Call]:
    match = _GLM_NAME.match(text)
    if match is None or _GLM_PAIR.sub("", text[match.end() :]).strip():
        return []
    return [(match[1], _to_arguments(match[1], _GLM_PAIR.findall(text[match.end() :]), tools))]


def _to_arguments(name: str, pairs: Sequence[tuple[str, str]], tools: Sequence[Tool]) -> str:
    """Return the JSON of arguments that came as text, in the types that the tool declares."""
    schema = next((tool.parameters for tool in tools if tool.name == name), {})
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    arguments = {key.strip(): _to_value(text, known.get(key.strip())) for key, text in pairs}
    return msgspec.json.encode(arguments).decode()


def _to_value(text: str, schema: Any) -> Any:
    # The templates put one line end around a value.
    text = text.removeprefix("\n").removesuffix("\n")
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
