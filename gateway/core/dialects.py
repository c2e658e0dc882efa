"""How a model marks its tool calls and its reasoning, read from its chat template. Pure."""

from collections.abc import Sequence

import msgspec


class CallFormat(msgspec.Struct, frozen=True):
    """How tool calls are written:

    `lead begin opening (head arguments tail) (between head arguments tail)* closing end`

    `head` holds the tool's name at `NAME`. Calls begin at `begin`; where that is empty they are
    the whole answer, without a mark. Without an `end` they go on to the end of the answer. Where
    `between` is None each call has a begin and an end of its own. A `head` of None: it can be
    read, and cannot be forced. `id_length` is that of the ids that the template insists on.
    """

    begin: str
    end: str = ""
    opening: str = ""
    closing: str = ""
    head: str | None = '{"name": "NAME", "arguments": '
    tail: str = "}"
    between: str | None = None
    lead: str = ""
    id_length: int | None = None

    @property
    def strings(self) -> tuple[str, ...]:
        return (self.lead, self.begin, self.opening, self.head or "", self.tail, self.closing)


class ReasoningFormat(msgspec.Struct, frozen=True):
    """Reasoning stands between `begin` and `end`, before the answer."""

    begin: str
    end: str


class Dialect(msgspec.Struct, frozen=True):
    """What is known of a model's way of speaking; `noise` are marks that mean nothing to a reader.

    `has_tools`: the template takes tool definitions; `has_reasoning`: it knows of reasoning.
    """

    calls: tuple[CallFormat, ...] = ()
    reasoning: ReasoningFormat | None = None
    noise: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """Every string of it that may hold control tokens, which must then not be dropped."""
        calls = [text for call in self.calls for text in (*call.strings, call.end, *_IN_CALLS)]
        reasoning = [self.reasoning.begin, self.reasoning.end] if self.reasoning else []
        return (*calls, *reasoning, *self.noise)


# Marks inside calls that only some models of a family write.
_IN_CALLS = ("[CALL_ID]", "[ARGS]", "<|constrain|>", "<|message|>", "<|channel|>")

HERMES = CallFormat("<tool_call>", "</tool_call>", opening="\n", closing="\n")
# Read by their own rules (engine.tool_calls); their arguments are no JSON.
TAGGED = CallFormat("<tool_call>", "</tool_call>", head=None)
LLAMA = CallFormat("", head='{"name": "NAME", "parameters": ', between="; ")
LLAMA_TAG = CallFormat("<|python_tag|>", head='{"name": "NAME", "parameters": ', between="; ")
MISTRAL = CallFormat("[TOOL_CALLS]", opening="[", closing="]", between=", ", id_length=9)
MISTRAL_ARGS = CallFormat("[TOOL_CALLS]", head="NAME[ARGS]", tail="", id_length=9)
DEEPSEEK = CallFormat(
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    head="<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>",
    tail="<｜tool▁call▁end｜>",
    between="",
)
DEEPSEEK_FENCED = CallFormat(
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n",
    tail="\n```<｜tool▁call▁end｜>",
    between="\n",
)
KIMI = CallFormat(
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    head="<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>",
    tail="<|tool_call_end|>",
    between="",
)
COMMAND = CallFormat(
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    opening="[",
    head='{"tool_call_id": "0", "tool_name": "NAME", "parameters": ',
    closing="]",
    between=", ",
)
PHI = CallFormat("<|tool_call|>", "<|/tool_call|>", opening="[", closing="]", between=", ")
GRANITE = CallFormat("<|tool_call|>", opening="[", closing="]", between=", ")
INTERN = CallFormat(
    "<|action_start|><|plugin|>", "<|action_end|>", head='{"name": "NAME", "parameters": '
)
HARMONY = CallFormat(
    "to=functions.",
    lead="<|channel|>commentary ",
    head="NAME <|constrain|>json<|message|>",
    tail="",
)
_HARMONY_NOISE = (
    "<|start|>assistant",
    "<|channel|>final",
    "<|channel|>commentary",
    "<|constrain|>json",
    "<|message|>",
    "<|end|>",
)

# The first whose every text is in the template is the model's: the special ones come first.
_CALLS: tuple[tuple[tuple[str, ...], tuple[CallFormat, ...]], ...] = (
    (("<|channel|>", "to=functions."), (HARMONY,)),
    (("<tool_call>", "<function="), (TAGGED,)),
    (("<tool_call>", "<arg_key>"), (TAGGED,)),
    (("<tool_call>", "</tool_call>"), (HERMES,)),
    (("[TOOL_CALLS]", "[ARGS]"), (MISTRAL_ARGS,)),
    (("[TOOL_CALLS]",), (MISTRAL,)),
    (("<｜tool▁calls▁begin｜>", "```json"), (DEEPSEEK_FENCED,)),
    (("<｜tool▁calls▁begin｜>",), (DEEPSEEK,)),
    (("<|tool_calls_section_begin|>",), (KIMI,)),
    (("<|START_ACTION|>",), (COMMAND,)),
    (("<|tool_call|>", "<|/tool_call|>"), (PHI,)),
    (("<|tool_call|>",), (GRANITE,)),
    (("<|action_start|>", "<|plugin|>"), (INTERN,)),
    (("<|python_tag|>",), (LLAMA, LLAMA_TAG)),
    (("<|start_header_id|>", '"parameters": '), (LLAMA, LLAMA_TAG)),
)

# The text that tells it, and the format.
_REASONING: tuple[tuple[str, ReasoningFormat], ...] = (
    ("<|channel|>analysis", ReasoningFormat("<|channel|>analysis<|message|>", "<|end|>")),
    ("<|channel>thought", ReasoningFormat("<|channel>thought", "<channel|>")),
    ("<|START_THINKING|>", ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>")),
    ("[THINK]", ReasoningFormat("[THINK]", "[/THINK]")),
    ("<seed:think>", ReasoningFormat("<seed:think>", "</seed:think>")),
    ("<think>", ReasoningFormat("<think>", "</think>")),
    # These split what was thought from earlier answers, and open the block by a token.
    ("</think>", ReasoningFormat("<think>", "</think>")),
    ("enable_thinking", ReasoningFormat("<think>", "</think>")),
)


def read_dialect(templates: Sequence[str]) -> Dialect:
    """Return how a model with these chat templates speaks; an unknown way is an empty dialect."""
    text = "\n".join(templates)
    # Without this a template only mentions marks, as in a history that it was trained on.
    takes_tools = "tools" in text
    calls = next((form for needs, form in _CALLS if all(n in text for n in needs)), ())
    reasoning = next((form for sign, form in _REASONING if sign in text), None)
    is_harmony = "<|channel|>" in text and "<|message|>" in text
    return Dialect(
        calls=calls if takes_tools else (),
        reasoning=reasoning,
        noise=_HARMONY_NOISE if is_harmony else (),
    )
