"""Whether an error cites what the caller wrote: such a text is his to read and no log's to keep."""

from collections.abc import Iterable

_WINDOW, _STRIDE = 12, 8
_LEAST = 6
MAX_TEXT = 256 * 1024
"""Characters that are searched: looking through more would hold up the event loop."""


def quotable(message: str, texts: Iterable[str]) -> str:
    """Return the message of an error as a log may keep it."""
    return "(it cites the request)" if cites(message, texts) else message


def cites(message: str, texts: Iterable[str]) -> bool:
    """Tell whether `message` has 19 characters or more in a row of one of `texts`, or all of one
    that is not shorter than 6. Of texts that are too long to look through it is assumed."""
    pieces = [message[at : at + _WINDOW] for at in range(0, len(message) - _WINDOW + 1, _STRIDE)]
    left = MAX_TEXT
    for text in texts:
        left -= len(text)
        if left < 0 and message:
            return True
        if len(text) >= _LEAST and text in message:
            return True
        if any(piece in text for piece in pieces):
            return True
    return False
