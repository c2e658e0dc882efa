"""Tokens through the whole pipeline: detokenizer, interpreter, stop strings, deltas."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import dialects
from gateway.core.dialects import Dialect, ReasoningFormat
from gateway.core.events import (
    Delta,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from gateway.core.messages import Said, Tool
from gateway.engine.text.interpreter import Interpreter
from gateway.engine.text.prompt import PromptEncoder
from gateway.engine.text.transcript import Transcript
from tests.tiny_tokenizers import byte_tokenizer, qwen_tokenizer

QWEN = Dialect((dialects.HERMES,), ReasoningFormat("<think>", "</think>"))
TOOLS = (Tool("time"), Tool("weather"))
CALL = '<tool_call>\n{"name": "time", "arguments": {"in": "Zürich"}}\n</tool_call>'


class Told:
    """Everything that a transcript said of some tokens."""

    def __init__(self, transcript: Transcript, tokens: Sequence[int]) -> None:
        self.deltas: list[Delta] = []
        self.pushed = 0
        for token in tokens:
            logprob = TokenLogprob(str(token), bytes([token % 256]), -1.0)
            self.deltas += transcript.push(token, logprob)
            self.pushed += 1
            if transcript.is_over:
                break
        rest, self.reason = transcript.finish("stop")
        self.deltas += rest

    def of(self, kind: type[Any]) -> str:
        return "".join(delta.text for delta in self.deltas if isinstance(delta, kind))

    @property
    def calls(self) -> list[tuple[int, str, str]]:
        found = [delta for delta in self.deltas if isinstance(delta, ToolCallDelta)]
        return [(delta.index, delta.call.name, delta.call.arguments) for delta in found]

    @property
    def tokens(self) -> int:
        return sum(delta.tokens for delta in self.deltas)

    def logprobs(self, kind: type[Any]) -> list[str]:
        return [p.token for d in self.deltas if isinstance(d, kind) for p in d.logprobs]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return qwen_tokenizer()


def tell(tokenizer: Any, text: str, *stops: str, **options: Any) -> Told:
    interpreter = Interpreter(QWEN, TOOLS, new_id=lambda: "id")
    decode = PromptEncoder(tokenizer).decode_chat
    transcript = Transcript(decode, interpreter, stops, **options)
    return Told(transcript, tokenizer(text)["input_ids"])


SPOKEN = (
    f"<think>\nWhät time?\n</think>\n\nI löok. {CALL}",
    f"No thöught STOP {CALL}\n{CALL} and möre",
    "Text that STO goes on ST",
    "<think>\nHm</think>A",
    "a <tool_call> that is none </tool_call> b",
)


@settings(deadline=None)  # the first of them imports the tokenizers
@given(text=st.sampled_from(SPOKEN), place=st.integers(0, 80), spelled=st.booleans())
def test_what_is_replayed_is_told_once_wherever_it_was_cut(
    text: str, place: int, spelled: bool
) -> None:
    tokenizer = byte_tokenizer() if spelled else qwen_tokenizer()
    decode = PromptEncoder(tokenizer).decode_chat

    def begin() -> Transcript:
        interpreter = Interpreter(QWEN, TOOLS, new_id=lambda: "id")
        return Transcript(decode, interpreter, ["STOP"], tells_ids=True)

    tokens = tokenizer(text)["input_ids"]
    whole = Told(begin(), tokens)
    # Deltas of one token may be cut apart, and what is told lags behind what was said.
    heard = whole.deltas[:place]
    ids = [token for delta in heard for token in delta.ids]
    assert ids == tokens[: len(ids)]
    said = Said(
        text="".join(delta.text for delta in heard if isinstance(delta, TextDelta)),
        reasoning="".join(delta.text for delta in heard if isinstance(delta, ReasoningDelta)),
        calls=sum(isinstance(delta, ToolCallDelta) for delta in heard),
    )
    transcript = begin()
    untold = transcript.replay(ids, said)
    assert not any(delta.tokens or delta.ids for delta in untold)
    rest = Told(transcript, [] if transcript.is_over else tokens[len(ids) :])
    rest.deltas[:0] = [*heard, *untold]
    for kind in (TextDelta, ReasoningDelta):
        assert rest.of(kind) == whole.of(kind)
    assert rest.calls == whole.calls
    assert (rest.tokens, rest.reason) == (whole.tokens, whole.reason)


@settings(deadline=None)
@given(said=st.text(alphabet="aSTOP ü", max_size=12), rest=st.text(alphabet="aSTOP ü", max_size=12))
def test_after_the_text_of_another_model_only_what_follows_is_told(said: str, rest: str) -> None:
    if "STOP" in said:
        return
    tokenizer = byte_tokenizer()
    decode = PromptEncoder(tokenizer).decode_chat
    interpreter = Interpreter(QWEN, TOOLS, new_id=lambda: "id")
    transcript = Transcript(decode, interpreter, ["STOP"])
    transcript.follow(tokenizer(said)["input_ids"] if said else [], said)
    told = Told(transcript, tokenizer(rest)["input_ids"] if rest else [])
    end = (said + rest).find("STOP")
    expected = said + rest if end < 0 else (said + rest)[: max(end, len(said))]
    assert said + told.of(TextDelta) == expected
    assert told.reason == "stop"


@pytest.mark.parametrize("spelled", [True, False])
def test_marks_may_be_tokens_or_spelled_out(tokenizer: Any, spelled: bool) -> None:
    text = f"<think>\nWhät time?\n</think>\n\nI löok. {CALL}"
    told = tell(byte_tokenizer() if spelled else tokenizer, text)
    assert told.of(ReasoningDelta) == "Whät time?"
    assert told.of(TextDelta) == "I löok."
    assert told.calls == [(0, "time", '{"in": "Zürich"}')]
    assert told.reason == "tool_calls"


def test_every_token_is_counted_once(tokenizer: Any) -> None:
    text = f"<think>\nWhät time?\n</think>\n\nI löok. {CALL}"
    told = tell(tokenizer, text)
    assert told.tokens == told.pushed == len(tokenizer(text)["input_ids"])


def test_log_probabilities_go_with_what_their_tokens_said(tokenizer: Any) -> None:
    told = tell(tokenizer, f"<think>ab</think>cö {CALL}")
    spelled = {kind: [*map(int, told.logprobs(kind))] for kind in (ReasoningDelta, TextDelta)}
    assert tokenizer.decode(spelled[ReasoningDelta]) == "ab"
    assert tokenizer.decode(spelled[TextDelta]) == "cö"
    assert tokenizer.decode([*map(int, told.logprobs(ToolCallDelta))]) == f" {CALL}"


def test_a_stop_string_ends_text_and_never_shows(tokenizer: Any) -> None:
    told = tell(tokenizer, "One. Two. STOP Three.", " STOP")
    assert (told.of(TextDelta), told.reason) == ("One. Two.", "stop")
    assert told.pushed == len("One. Two. STOP")


def test_stop_strings_hold_for_text_alone(tokenizer: Any) -> None:
    told = tell(tokenizer, f"<think>time in\n\nZürich</think>\n\nGood. {CALL}", "Zür", "\n\n")
    assert told.of(ReasoningDelta) == "time in\n\nZürich"
    assert told.of(TextDelta) == "Good."
    assert told.calls == [(0, "time", '{"in": "Zürich"}')]


def test_text_held_back_for_a_stop_string_comes_before_the_call(tokenizer: Any) -> None:
    told = tell(tokenizer, f"Good{CALL}", "God", "ood-bye")
    assert [type(delta) for delta in told.deltas][-1] is ToolCallDelta
    assert told.of(TextDelta) == "Good"


def test_the_beginning_of_a_stop_string_at_the_end_is_text(tokenizer: Any) -> None:
    told = tell(tokenizer, "Good ST", "STOP")
    assert (told.of(TextDelta), told.reason) == ("Good ST", "stop")


def test_a_call_that_cannot_be_read_is_text_and_no_call(tokenizer: Any) -> None:
    said = 'So: <tool_call>\n{"name": time}\n</tool_call>'
    told = tell(tokenizer, said)
    assert (told.of(TextDelta), told.calls, told.reason) == (said, [], "stop")


def test_calls_count_from_zero_and_one_may_be_enough(tokenizer: Any) -> None:
    both = tell(tokenizer, f"{CALL}\n{CALL}")
    assert [index for index, *_ in both.calls] == [0, 1]
    one = tell(tokenizer, f"{CALL}\n{CALL}", one_call=True)
    assert [index for index, *_ in one.calls] == [0]
    assert one.reason == "tool_calls" and one.pushed < both.pushed


@pytest.mark.parametrize("reason", ["length", "cancelled", "error"])
def test_an_answer_that_was_cut_says_why(tokenizer: Any, reason: FinishReason) -> None:
    interpreter = Interpreter(QWEN, TOOLS, new_id=lambda: "id")
    transcript = Transcript(PromptEncoder(tokenizer).decode_chat, interpreter)
    for token in tokenizer(CALL)["input_ids"]:
        transcript.push(token)
    assert transcript.finish(reason)[1] == reason


PARTS = st.sampled_from(
    [
        "<think>",
        "</think>",
        CALL,
        "<tool_call>",
        "</tool_call>",
        "ü",
        "日本",
        "STOP",
        "ST",
        " ",
        "x",
    ]
)


@given(parts=st.lists(PARTS, max_size=8))
def test_tokens_and_letters_tell_the_same(tokenizer: Any, parts: list[str]) -> None:
    text = "".join(parts)
    whole, spelled = tell(tokenizer, text, "STOP"), tell(byte_tokenizer(), text, "STOP")
    assert whole.of(TextDelta) == spelled.of(TextDelta)
    assert whole.of(ReasoningDelta) == spelled.of(ReasoningDelta)
    assert whole.calls == spelled.calls
    assert whole.reason == spelled.reason
    assert "STOP" not in whole.of(TextDelta)
    assert whole.tokens <= whole.pushed
