"""Which dialect a chat template speaks, and that forced calls come back as calls."""

import pytest

from gateway.core import dialects
from gateway.core.dialects import CallFormat, Dialect, read_dialect
from gateway.core.messages import GenerateRequest, Tool
from gateway.engine.text.grammar import GrammarWriter
from gateway.engine.text.interpreter import Interpreter
from gateway.engine.text.vocabulary import Vocabulary
from tests.tiny_tokenizers import byte_tokenizer
from tests.unit.engine.test_constraint import draw

pytest.importorskip("torch")

HEADER = "{% if tools %}{{ tools | tojson }}{% endif %}"
FORMATS = {
    "hermes": (HEADER + "<tool_call>{...}</tool_call>", dialects.HERMES),
    "qwen3-coder": (HEADER + "<tool_call><function=a></function></tool_call>", dialects.TAGGED),
    "glm": (HEADER + "<tool_call>name<arg_key>", dialects.TAGGED),
    "llama3.1": (HEADER + "<|python_tag|>", dialects.LLAMA),
    "llama3.2": (HEADER + "<|start_header_id|>{{ '\"parameters\": ' }}", dialects.LLAMA),
    "mistral": (HEADER + "[TOOL_CALLS]", dialects.MISTRAL),
    "mistral-small": (HEADER + "[TOOL_CALLS]f[ARGS]", dialects.MISTRAL_ARGS),
    "deepseek-v3": (HEADER + "<｜tool▁calls▁begin｜>function\n```json", dialects.DEEPSEEK_FENCED),
    "deepseek-v3.1": (HEADER + "<｜tool▁calls▁begin｜>", dialects.DEEPSEEK),
    "kimi": (HEADER + "<|tool_calls_section_begin|>", dialects.KIMI),
    "command-r": (HEADER + "<|START_ACTION|>", dialects.COMMAND),
    "phi4": (HEADER + "<|tool_call|><|/tool_call|>", dialects.PHI),
    "granite": (HEADER + "<|tool_call|>", dialects.GRANITE),
    "internlm": (HEADER + "<|action_start|><|plugin|>", dialects.INTERN),
    "gpt-oss": (HEADER + "<|channel|>commentary to=functions.x <|message|>", dialects.HARMONY),
}
LOOK = Tool(
    "look_up",
    parameters={
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["n"],
        "additionalProperties": False,
    },
)


@pytest.mark.parametrize("family", FORMATS)
def test_a_template_tells_its_format(family: str) -> None:
    template, form = FORMATS[family]
    assert read_dialect([template]).calls[0] == form


@pytest.mark.parametrize(
    ("template", "begin"),
    [
        ("{% if enable_thinking %}", "<think>"),
        ("{{ content.split('</think>')[-1] }}", "<think>"),
        ("[THINK]...[/THINK]", "[THINK]"),
        ("<|START_THINKING|>", "<|START_THINKING|>"),
        ("<|channel|>analysis<|message|>", "<|channel|>analysis<|message|>"),
    ],
)
def test_a_template_tells_how_it_reasons(template: str, begin: str) -> None:
    reasoning = read_dialect([template]).reasoning
    assert reasoning is not None and reasoning.begin == begin


def test_a_plain_template_has_no_dialect() -> None:
    assert read_dialect(["{% for message in messages %}{{ message.content }}"]) == Dialect()
    assert read_dialect([]) == Dialect()
    # A history may hold calls that the template takes no definitions for.
    assert read_dialect(["<tool_call></tool_call>"]).calls == ()


FORCED = [name for name, (_, form) in FORMATS.items() if form.head is not None]


@pytest.mark.parametrize("choice", ["required", "look_up"])
@pytest.mark.parametrize("as_tokens", [True, False])
@pytest.mark.parametrize("family", FORCED)
def test_a_forced_call_is_made_and_read_in_every_format(
    family: str, as_tokens: bool, choice: str
) -> None:
    dialect = read_dialect([FORMATS[family][0]])
    tokenizer = byte_tokenizer(special=_marks(dialect.calls[-1]) if as_tokens else [])
    vocabulary = Vocabulary(tokenizer, len(tokenizer), frozenset({0}))
    request = GenerateRequest(id="r", model="m", tools=(LOOK,), tool_choice=choice)
    writer = GrammarWriter(dialect, vocabulary.marks)
    grammar = writer.write(request, is_raw=False, is_reasoning=False)
    for seed in range(3):
        said, is_whole = draw(vocabulary, grammar, seed)
        interpreter = Interpreter(dialect, (LOOK,), new_id=lambda: "id")
        pieces = interpreter.push(said.decode()) + interpreter.flush()
        calls = [call for piece in pieces for call in piece.calls]
        assert "".join(piece.said for piece in pieces) == said.decode()
        if is_whole:
            assert {call.name for call in calls} == {"look_up"}
            assert all('"n"' in call.arguments for call in calls)
            assert [p.said for p in pieces if p.kind == "text" and p.said.strip()] == []
            assert choice == "required" or len(calls) == 1


def _marks(form: CallFormat) -> list[str]:
    """Return the control tokens that a model of this format would have."""
    known = [form.begin.strip(), form.end, "[ARGS]", "<|message|>", "<|channel|>", "<|constrain|>"]
    parts = [mark for mark in known if mark.startswith(("<", "["))]
    return sorted(set(parts) | {"<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<|tool_call_begin|>"})
