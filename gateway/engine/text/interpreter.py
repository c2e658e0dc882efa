"""Tells text, reasoning and tool calls apart in what a model says, as it says it. Pure.

Nothing is lost: the pieces, put together, are what was said, marks included.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from gateway.core.dialects import CallFormat, Dialect
from gateway.core.messages import Tool, ToolCall
from gateway.core.stopping import held_length
from gateway.engine.text.tool_calls import (
    Call,
    is_inside_string,
    may_be_bare_call,
    read_bare_calls,
    read_calls,
)


class Piece(msgspec.Struct, frozen=True):
    """A stretch of what was said; a mark is not for readers, nor is the space around it."""

    kind: Literal["text", "reasoning", "calls", "mark"]
    said: str
    calls: tuple[ToolCall, ...] = ()


class Interpreter:
    """Reads one answer. Holds text back only while it may be, or may belong to, a mark.

    Calls are read if `tools` are given; one that cannot be read is text. Reasoning comes before
    any text, or not at all; `is_reasoning`: the prompt itself has begun it.
    """

    def __init__(
        self,
        dialect: Dialect,
        tools: Sequence[Tool],
        *,
        new_id: Callable[[], str],
        is_reasoning: bool = False,
    ) -> None:
        self._tools = tools
        self._new_id = new_id
        self._reasoning = dialect.reasoning
        self._noise = dialect.noise
        forms = dialect.calls if tools else ()
        self._forms = {form.begin: form for form in forms if form.begin}
        self._reads_bare = any(not form.begin for form in forms)
        self._pending = ""
        self._has_spoken = False
        self._trims = is_reasoning
        self._form: CallFormat | None = None
        self._body_at = 0
        self._read: Callable[[bool], list[Piece]] = (
            self._read_reasoning if is_reasoning and dialect.reasoning else self._read_text
        )

    def follow_text(self) -> None:
        """Go on inside the text of an answer, of which this has read nothing."""
        self._has_spoken, self._trims = True, False
        self._read = self._read_text

    def push(self, text: str) -> list[Piece]:
        """Return the pieces that are certain now."""
        self._pending += text
        return self._advance(is_end=False)

    def flush(self) -> list[Piece]:
        """Return the rest, at the end of the answer."""
        return self._advance(is_end=True)

    def _advance(self, *, is_end: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while self._pending:
            left, reader = len(self._pending), self._read
            pieces += self._trim()
            pieces += self._read(is_end)
            if len(self._pending) == left and self._read == reader:
                break
        return pieces

    def _take(self, length: int, kind: Literal["text", "reasoning", "mark"]) -> list[Piece]:
        said, self._pending = self._pending[:length], self._pending[length:]
        self._has_spoken = self._has_spoken or (kind == "text" and bool(said))
        return [Piece(kind, said)] if said else []

    def _trim(self) -> list[Piece]:
        if not self._trims:
            return []
        length = len(self._pending) - len(self._pending.lstrip())
        self._trims = length == len(self._pending)
        return self._take(length, "mark")

    def _read_text(self, is_end: bool) -> list[Piece]:
        if self._reads_bare and not self._has_spoken and may_be_bare_call(self._pending):
            return self._read_bare() if is_end else []
        at, mark = _first(self._pending, self._marks())
        if mark:
            return self._read_mark(at, mark)
        if is_end:
            return self._take(len(self._pending), "text")
        certain = self._pending[: len(self._pending) - held_length(self._pending, self._marks())]
        # The space before a call or before reasoning belongs to its mark.
        if self._forms or (self._reasoning and not self._has_spoken):
            certain = certain.rstrip()
        return self._take(len(certain), "text")

    def _marks(self) -> list[str]:
        marks = [*self._forms, *self._noise]
        if self._reasoning and not self._has_spoken:
            marks.append(self._reasoning.begin)
        return marks

    def _read_mark(self, at: int, mark: str) -> list[Piece]:
        before = len(self._pending[:at].rstrip())
        form = self._forms.get(mark)
        if form is not None:
            pieces = self._take(before, "text")
            self._form, self._body_at = form, at - before + len(mark)
            self._read = self._read_call
            return pieces
        if self._reasoning and mark == self._reasoning.begin and before == 0:
            self._read = self._read_reasoning
        elif mark not in self._noise:
            return self._take(at + len(mark), "text")
        pieces = self._take(at if before else 0, "text")
        self._trims = True
        return pieces + self._take(len(mark) if before else at + len(mark), "mark")

    def _read_reasoning(self, is_end: bool) -> list[Piece]:
        assert self._reasoning is not None
        at = self._pending.find(self._reasoning.end)
        if at >= 0:
            shown = len(self._pending[:at].rstrip())
            self._read, self._trims = self._read_text, True
            pieces = self._take(shown, "reasoning")
            return pieces + self._take(at - shown + len(self._reasoning.end), "mark")
        if is_end:
            return self._take(len(self._pending), "reasoning")
        held = held_length(self._pending, [self._reasoning.end])
        return self._take(len(self._pending[: len(self._pending) - held].rstrip()), "reasoning")

    def _read_call(self, is_end: bool) -> list[Piece]:
        assert self._form is not None
        end, at = self._form.end, self._body_at
        while end and (at := self._pending.find(end, at)) >= 0:
            body = self._pending[self._body_at : at]
            at += len(end)
            if not is_inside_string(body):
                return self._take_calls(read_calls(body, self._tools), at)
        if not is_end:
            return []
        body = self._pending[self._body_at :]
        return self._take_calls(read_calls(body, self._tools), len(self._pending))

    def _read_bare(self) -> list[Piece]:
        return self._take_calls(read_bare_calls(self._pending, self._tools), len(self._pending))

    def _take_calls(self, calls: Sequence[Call], length: int) -> list[Piece]:
        self._read = self._read_text
        if not calls:
            return self._take(length, "text")
        self._trims = True
        said, self._pending = self._pending[:length], self._pending[length:]
        made = tuple(ToolCall(self._new_id(), name, arguments) for name, arguments in calls)
        return [Piece("calls", said, made)]


def _first(text: str, marks: Sequence[str]) -> tuple[int, str]:
    """Return where the first of the marks is, and which; no mark is an empty one."""
    found = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark)) >= 0]
    if not found:
        return len(text), ""
    at, _, mark = min(found)
    return at, mark
