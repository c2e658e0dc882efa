"""What one answer says: tokens go in, and the deltas of text, reasoning and calls come out."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from gateway.core.events import (
    Delta,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from gateway.engine.detokenizer import Detokenizer
from gateway.engine.interpreter import Interpreter, Piece
from gateway.engine.stopping import StopMatcher


class Transcript:
    """Token by token: text, its meaning, and its stop strings, which hold for text alone.

    `is_over` is set when there is nothing more to say: a stop string was found, or the one call
    that was asked for was made.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        interpreter: Interpreter,
        stops: Sequence[str] = (),
        *,
        one_call: bool = False,
        byte_tokens: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """`decode` and `byte_tokens` are as a Detokenizer takes them."""
        self.is_over = False
        self._detokenizer = Detokenizer(decode, byte_tokens)
        self._interpreter = interpreter
        self._stops = StopMatcher(stops)
        self._one_call = one_call
        self._ledger = _Ledger()
        self._calls = 0

    def push(self, token: int, logprob: TokenLogprob | None = None) -> list[Delta]:
        """Return what can be told now that `token` was said."""
        text = self._detokenizer.push(token)
        self._ledger.write(len(text), logprob)
        return self._tell(self._interpreter.push(text))

    def finish(self, reason: FinishReason) -> tuple[list[Delta], FinishReason]:
        """Return the rest, and why the answer ended; `reason` is the reason from outside."""
        deltas: list[Delta] = []
        if not self.is_over:
            text = self._detokenizer.flush()
            self._ledger.write_more(len(text))
            deltas = self._tell(self._interpreter.push(text) + self._interpreter.flush())
            deltas += self._let_go()
        if self._stops.stopped:
            return deltas, "stop"
        if self._calls and (reason == "stop" or self.is_over):
            return deltas, "tool_calls"
        return deltas, reason

    def _tell(self, pieces: Sequence[Piece]) -> list[Delta]:
        deltas: list[Delta] = []
        for piece in pieces:
            if self.is_over:
                break
            if piece.kind != "text":
                deltas += self._let_go()
            deltas += self._tell_piece(piece)
        return deltas

    def _tell_piece(self, piece: Piece) -> list[Delta]:
        match piece.kind:
            case "text":
                shown = self._stops.push(piece.said)
                self.is_over = self._stops.stopped
                return self._text(shown)
            case "reasoning":
                return [ReasoningDelta(piece.said, *self._ledger.read(len(piece.said)))]
            case "calls":
                return self._tell_calls(piece)
            case "mark":
                self._ledger.skip(len(piece.said))
                return []

    def _tell_calls(self, piece: Piece) -> list[Delta]:
        told = self._ledger.read(len(piece.said))
        calls = piece.calls[: 1 if self._one_call else None]
        deltas: list[Delta] = []
        for call in calls:
            deltas.append(ToolCallDelta(self._calls, call, *told))
            told = (0, ())
            self._calls += 1
        self.is_over = self._one_call
        return deltas

    def _let_go(self) -> list[Delta]:
        return self._text(self._stops.flush())

    def _text(self, shown: str) -> list[Delta]:
        return [TextDelta(shown, *self._ledger.read(len(shown)))] if shown else []


class _Ledger:
    """Which tokens made which text: each goes with the first character that it took part in."""

    def __init__(self) -> None:
        self._tokens: deque[tuple[int, TokenLogprob | None]] = deque()
        self._written = 0
        self._read = 0
        self._skipped = 0

    def write(self, length: int, logprob: TokenLogprob | None) -> None:
        self._tokens.append((self._written, logprob))
        self._written += length

    def write_more(self, length: int) -> None:
        """Note text that belongs to the tokens already written."""
        self._written += length

    def read(self, length: int) -> tuple[int, tuple[TokenLogprob, ...]]:
        """Return the tokens of the next `length` characters: how many, and their logprobs.

        The count has those that were skipped, as they were computed, too.
        """
        taken = self._pop(length)
        count, self._skipped = self._skipped + len(taken), 0
        return count, tuple(logprob for logprob in taken if logprob is not None)

    def skip(self, length: int) -> None:
        """Pass over the next `length` characters, which nobody is shown."""
        self._skipped += len(self._pop(length))

    def _pop(self, length: int) -> list[TokenLogprob | None]:
        self._read += length
        taken = []
        while self._tokens and self._tokens[0][0] < self._read:
            taken.append(self._tokens.popleft()[1])
        return taken
