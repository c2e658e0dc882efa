"""What one answer says: tokens go in, and the deltas of text, reasoning and calls come out."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from msgspec.structs import replace

from gateway.core.events import (
    Delta,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from gateway.core.messages import Said
from gateway.core.stopping import StopMatcher
from gateway.engine.text.detokenizer import Detokenizer
from gateway.engine.text.interpreter import Interpreter, Piece


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
        tells_ids: bool = False,
    ) -> None:
        """`decode` and `byte_tokens` are as a Detokenizer takes them."""
        self.is_over = False
        self._echo: Echo | None = None
        self._detokenizer = Detokenizer(decode, byte_tokens)
        self._interpreter = interpreter
        self._stops = StopMatcher(stops)
        self._one_call = one_call
        self._ledger = _Ledger(tells_ids=tells_ids)
        self._calls = 0

    def push(self, token: int, logprob: TokenLogprob | None = None) -> list[Delta]:
        """Return what can be told now that `token` was said."""
        text = self._detokenizer.push(token)
        self._ledger.write(len(text), token, logprob)
        deltas = self._tell(self._interpreter.push(text))
        return deltas if self._echo is None else self._echo.strip(deltas)

    def replay(self, ids: Sequence[int], said: Said) -> list[Delta]:
        """Take `ids` for what was said before, all of them counted; return what they say and `said`
        lacks. What `said` has is not told again, now or later."""
        deltas = [delta for token in ids for delta in self.push(token)]
        self._ledger.forget()
        self._echo = Echo(len(said.text), len(said.reasoning), said.calls)
        return [_uncounted(delta) for delta in self._echo.strip(deltas)]

    def follow(self, ids: Sequence[int], text: str) -> None:
        """Go on after `text`, which another model said and readers have; `ids` are its tokens."""
        for token in ids:
            self._detokenizer.push(token)
        self._interpreter.follow_text()
        self._stops.push(text)
        self._ledger.write_more(len(self._stops.held))
        self._echo = Echo(len(self._stops.held))

    def finish(self, reason: FinishReason) -> tuple[list[Delta], FinishReason]:
        """Return the rest, and why the answer ended; `reason` is the reason from outside."""
        deltas: list[Delta] = []
        if not self.is_over:
            text = self._detokenizer.flush()
            self._ledger.write_more(len(text))
            deltas = self._tell(self._interpreter.push(text) + self._interpreter.flush())
            deltas += self._let_go()
        if self._echo is not None:
            deltas = self._echo.strip(deltas)
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
            told = (0, (), ())
            self._calls += 1
        self.is_over = self._one_call
        return deltas

    def _let_go(self) -> list[Delta]:
        return self._text(self._stops.flush())

    def _text(self, shown: str) -> list[Delta]:
        return [TextDelta(shown, *self._ledger.read(len(shown)))] if shown else []


class Echo:
    """Takes out of deltas what was told before: so many characters, and so many calls."""

    def __init__(self, text: int = 0, reasoning: int = 0, calls: int = 0) -> None:
        self._text = text
        self._reasoning = reasoning
        self._calls = calls

    def strip(self, deltas: Sequence[Delta]) -> list[Delta]:
        """Return the deltas without what was told before; a token of them stays counted."""
        if not (self._text or self._reasoning or self._calls):
            return list(deltas)
        return [left for delta in deltas if (left := self._strip(delta)) is not None]

    def _strip(self, delta: Delta) -> Delta | None:
        match delta:
            case TextDelta():
                cut = min(self._text, len(delta.text))
                self._text -= cut
            case ReasoningDelta():
                cut = min(self._reasoning, len(delta.text))
                self._reasoning -= cut
            case ToolCallDelta():
                is_told = self._calls > 0
                self._calls -= is_told
                return None if is_told else delta
        if cut == len(delta.text) and not delta.tokens:
            return None
        return replace(delta, text=delta.text[cut:]) if cut else delta


def _uncounted(delta: Delta) -> Delta:
    return replace(delta, tokens=0, logprobs=(), ids=())


class _Ledger:
    """Which tokens made which text: each goes with the first character that it took part in."""

    def __init__(self, *, tells_ids: bool) -> None:
        self._tokens: deque[tuple[int, int, TokenLogprob | None]] = deque()
        self._tells_ids = tells_ids
        self._written = 0
        self._read = 0
        self._skipped: list[int] = []

    def write(self, length: int, token: int, logprob: TokenLogprob | None) -> None:
        self._tokens.append((self._written, token, logprob))
        self._written += length

    def write_more(self, length: int) -> None:
        """Note text that belongs to the tokens already written."""
        self._written += length

    def read(self, length: int) -> tuple[int, tuple[TokenLogprob, ...], tuple[int, ...]]:
        """Return the tokens of the next `length` characters: how many, their logprobs and ids.

        The count and the ids have those that were skipped, as they were computed, too.
        """
        taken = self._pop(length)
        count = len(self._skipped) + len(taken)
        ids = (*self._skipped, *(token for token, _ in taken)) if self._tells_ids else ()
        self._skipped.clear()
        return count, tuple(logprob for _, logprob in taken if logprob is not None), ids

    def skip(self, length: int) -> None:
        """Pass over the next `length` characters, which nobody is shown."""
        self._skipped += [token for token, _ in self._pop(length)]

    def forget(self) -> None:
        """Let all tokens so far be counted elsewhere; of which text they are stays."""
        self._tokens.clear()
        self._skipped.clear()

    def _pop(self, length: int) -> list[tuple[int, TokenLogprob | None]]:
        self._read += length
        taken = []
        while self._tokens and self._tokens[0][0] < self._read:
            _, token, logprob = self._tokens.popleft()
            taken.append((token, logprob))
        return taken
