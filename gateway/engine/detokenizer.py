"""Turns token ids into text as they come, never splitting a character."""

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"


class Detokenizer:
    """Decodes one answer. `decode` maps ids to text; a character may span several tokens.

    Decodes a short window from the last safe point, as the neighbours of a token may change how
    it reads (spaces, joined bytes).
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._window = 0
        self._shown = 0

    def push(self, token: int) -> str:
        """Return the text that is certain now; empty while a character is incomplete."""
        self._ids.append(token)
        before, after = self._texts()
        if after.endswith(REPLACEMENT) or len(after) <= len(before):
            return ""
        self._window, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    def flush(self) -> str:
        """Return what is left at the end; broken bytes show as the replacement character."""
        before, after = self._texts()
        self._window = self._shown = len(self._ids)
        return after[len(before) :]

    def _texts(self) -> tuple[str, str]:
        window = self._ids[self._window :]
        return self._decode(window[: self._shown - self._window]), self._decode(window)
