"""Writes the grammar that an answer must follow, from the schema or the tools asked for. Pure.

The grammar is llguidance's form of Lark; JSON Schema is a part of it (`%json`).
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from gateway.core.dialects import CallFormat, Dialect, ReasoningFormat
from gateway.core.errors import InvalidRequest, UnsupportedCapability
from gateway.core.messages import GenerateRequest, Tool
from gateway.engine.text.chat import NO_PARAMETERS

MAX_SCHEMA_BYTES = 64 * 1024
MAX_ALTERNATIVES = 128
"""In one anyOf, oneOf or allOf. More can cost a second a step, which all other answers wait for."""
MAX_MULTIPLE = 10_000
"""Numbers are matched by an automaton with a state for each remainder."""

MAX_INTEGER = 2**53
"""The compiler reads constants as floats."""

# Enough for any indentation; without a bound a weak model may never come back from its spaces.
_SPACE = r"[ \n\t]{1,24}"


def is_forced(choice: str | None) -> bool:
    """Tell whether a tool must be called."""
    return choice not in (None, "auto", "none")


def is_bound(request: GenerateRequest) -> bool:
    """Tell whether the answer must follow a grammar at all."""
    return is_forced(request.tool_choice) or wanted_schema(request) is not None


def wanted_schema(request: GenerateRequest) -> dict[str, Any] | None:
    """Return the schema that a whole answer must follow, if there is one."""
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    return {"type": "object"} if wanted.type == "json_object" else (wanted.schema or {})


def schemas_of(request: GenerateRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every schema that may bind the answer, after the parameter that it came by."""
    if (schema := wanted_schema(request)) is not None:
        yield "response_format", schema
    if request.tool_choice != "none":
        for index, tool in enumerate(request.tools):
            yield f"tools[{index}].function.parameters", tool.parameters


def write_schema(schema: dict[str, Any], param: str) -> str:
    """Return a grammar's `%json` for a schema.

    Raises InvalidRequest for one that is too large to compile.
    """
    try:
        text = json.dumps({**schema, "x-guidance": {"whitespace_pattern": _SPACE}})
        nodes = list(_nodes(schema))
    except (RecursionError, ValueError):
        raise InvalidRequest("The schema nests too deep.", param=param) from None
    if reason := _excess(len(text), nodes):
        raise InvalidRequest(f"The schema is too large: {reason}.", param=param)
    return f"%json {text}"


class GrammarWriter:
    """Writes for one model: its dialect, and its marks that are tokens, by their text."""

    def __init__(self, dialect: Dialect, marks: Mapping[str, int]) -> None:
        self._dialect = dialect
        self._marks = marks
        known = sorted((mark for mark in marks if mark), key=len, reverse=True)
        self._splitter = re.compile("|".join(map(re.escape, known))) if known else None

    def write(self, request: GenerateRequest, *, is_raw: bool, is_reasoning: bool) -> str:
        """Return the grammar of a request that is bound.

        `is_reasoning`: the prompt has begun the reasoning. Raises InvalidRequest, and
        UnsupportedCapability for a call that is forced on a model whose way of calling is unknown.
        """
        rules = self._answer_rules(request)
        reasoning = None if is_raw else self._dialect.reasoning
        if is_reasoning and reasoning:
            rules = ["start: thought gap answer", *self._thought(reasoning), *rules]
        elif reasoning and request.think is not False:
            opening = f"start: ({self._literal(reasoning.begin)} thought gap)? answer"
            rules = [opening, *self._thought(reasoning), *rules]
        else:
            rules = ["start: answer", *rules]
        return "%llguidance {}\n" + "\n".join(rules) + "\n"

    def _answer_rules(self, request: GenerateRequest) -> list[str]:
        schema = wanted_schema(request)
        if schema is None or is_forced(request.tool_choice):
            return ["answer: calls", *self._call_rules(request)]
        rules = [f"json: {write_schema(schema, 'response_format')}"]
        may_call = request.tools and request.tool_choice != "none" and self._form() is not None
        if may_call:
            return ["answer: json | calls", *rules, *self._call_rules(request)]
        return ["answer: json", *rules]

    def _form(self) -> CallFormat | None:
        return next((form for form in self._dialect.calls if form.head is not None), None)

    def _call_rules(self, request: GenerateRequest) -> list[str]:
        form = self._form()
        if form is None:
            raise UnsupportedCapability(
                "How this model calls tools cannot be forced.",
                hint="Use tool_choice auto.",
                param="tool_choice",
            )
        named = [i for i, tool in enumerate(request.tools) if tool.name == request.tool_choice]
        chosen = named or range(len(request.tools))
        once = bool(named) or not request.parallel_tool_calls
        choice = " | ".join(f"call_{index}" for index in chosen)
        rules = [self._block_rules(form, once), f"call: {choice}"]
        for index in chosen:
            rules += self._tool_rules(form, index, request.tools[index])
        return rules

    def _block_rules(self, form: CallFormat, once: bool) -> str:
        more = ""
        if form.between is not None and not once:
            more = f" ({self._literal(form.between)} call)*"
        begin = self._literal(form.lead + form.begin + form.opening)
        block = f"{begin} call{more} {self._literal(form.closing + form.end)}"
        if form.between is None and form.end and not once:
            return f'calls: block ("\\n" block)*\nblock: {block}'
        return f"calls: {block}"

    def _tool_rules(self, form: CallFormat, index: int, tool: Tool) -> list[str]:
        parameters = {"type": "object", **(tool.parameters or NO_PARAMETERS)}
        schema = write_schema(parameters, f"tools[{index}].function.parameters")
        head = form.head or ""
        name = json.dumps(tool.name, ensure_ascii=False)[1:-1] if '"NAME"' in head else tool.name
        written = self._literal(head.replace("NAME", name))
        return [
            f"call_{index}: {written} arguments_{index} {self._literal(form.tail)}",
            f"arguments_{index}: {schema}",
        ]

    def _thought(self, form: ReasoningFormat) -> list[str]:
        # The text of the end must not be spelled out: only the end itself ends the thought.
        end = re.escape(form.end).replace("/", r"\/")
        return [
            f"thought: THOUGHT {self._literal(form.end)}",
            rf"THOUGHT: /(.|\n)*/ & ~/(.|\n)*{end}(.|\n)*/",
            r"gap: /\n{0,2}/",
        ]

    def _literal(self, text: str) -> str:
        """Return the symbols of a text: its marks by their tokens, the rest as strings."""
        symbols: list[str] = []
        position = 0
        for match in self._splitter.finditer(text) if self._splitter else ():
            symbols += _string(text[position : match.start()])
            symbols.append(f"<[{self._marks[match[0]]}]>")
            position = match.end()
        return " ".join(symbols + _string(text[position:]))


def _string(text: str) -> list[str]:
    return [json.dumps(text, ensure_ascii=False)] if text else []


def _excess(size: int, nodes: list[dict[str, Any]]) -> str | None:
    """Return what of a schema would cost too much to compile or to follow."""
    if size > MAX_SCHEMA_BYTES:
        return f"it has {size} bytes; {MAX_SCHEMA_BYTES} are allowed"
    for node in nodes:
        for key in ("anyOf", "oneOf", "allOf"):
            if isinstance(node.get(key), list) and len(node[key]) > MAX_ALTERNATIVES:
                return f"{key} has {len(node[key])} parts; {MAX_ALTERNATIVES} are allowed"
    if any(_is_inexact(value) for node in nodes for value in _constants(node)):
        return f"it names an integer above {MAX_INTEGER}, which would be rounded"
    multiples = [Fraction(str(value)) for node in nodes if (value := _multiple_of(node))]
    states = math.lcm(*(part for each in multiples for part in each.as_integer_ratio()))
    if states > MAX_MULTIPLE:
        return f"its multipleOf is too fine or too large, above {MAX_MULTIPLE}"
    return None


def _multiple_of(node: dict[str, Any]) -> float:
    value = node.get("multipleOf")
    return value if isinstance(value, int | float) else 0


def _constants(node: dict[str, Any]) -> list[Any]:
    values = node.get("enum")
    return [*(values if isinstance(values, list) else []), node.get("const")]


def _is_inexact(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > MAX_INTEGER


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a schema, whatever it is there for."""
    if isinstance(schema, dict):
        yield schema
    elif not isinstance(schema, list):
        return
    for value in schema.values() if isinstance(schema, dict) else schema:
        yield from _nodes(value)
