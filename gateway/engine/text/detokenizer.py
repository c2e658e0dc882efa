"""Turns token ids into text as they come, never splitting a character."""

import codecs
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

REPLACEMENT = "\ufffd"
LONG, SHORT = 12, 6
"""Tokens that are decoded together at most, and how many of them stay when there are as many. A
character has at most four bytes, and so many tokens: the last six have all of one that is cut
through at their beginning, and of one that is incomplete at their end."""


class Detokenizer:
    """Decodes one answer; what it returns is in all what decoding the whole at once would be.

    Holds back no more than the last character while its bytes (at most three) are no whole one.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        byte_tokens: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """`decode` maps ids to text, with broken bytes as replacement characters.

        `byte_tokens` are those that stand for one byte (byte fallback), and its value. They are
        decoded here: a tokenizer's own decoder gives up a whole run of them for one broken byte.
        """
        self._decode = decode
        self._byte_tokens = byte_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # The last tokens: neighbours change how a token reads (spaces, joined bytes). Of their
        # text so many characters are told.
        self._ids: list[int] = []
        self._text = ""
        self._told = 0

    def push(self, token: int) -> str:
        """Return the text that is certain now; empty while a character is incomplete."""
        byte = self._byte_tokens.get(token)
        if byte is not None:
            return self._push_byte(token, byte)
        self._ids.append(token)
        self._text = self._decode(self._ids)
        # Incomplete bytes at the end read as one replacement character; all before it is certain.
        said = self._tell(len(self._text) - self._text.endswith(REPLACEMENT))
        if len(self._ids) >= LONG:
            self._shorten()
        return self._end_bytes() + said if said else ""

    def flush(self) -> str:
        """Return what is left at the end; broken bytes show as the replacement character."""
        return self._end_bytes() + self._tell(len(self._text))

    def _push_byte(self, token: int, byte: int) -> str:
        said = self._tell(len(self._text))
        if not self._ids:
            # The next word is not the first: what is before it decides on its space.
            self._ids = [token]
            self._text = self._decode(self._ids)
            self._told = len(self._text)
        return said + self._utf8.decode(bytes([byte]))

    def _end_bytes(self) -> str:
        left = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return left

    def _tell(self, until: int) -> str:
        said = self._text[self._told : until]
        self._told = max(self._told, until)
        return said

    def _shorten(self) -> None:
        """Forget the older tokens, unless what is left reads in another way without them."""
        untold = self._text[self._told :]
        text = self._decode(self._ids[-SHORT:])
        if text.endswith(untold) and len(text) > len(untold):
            self._ids = self._ids[-SHORT:]
            self._text, self._told = text, len(text) - len(untold)
