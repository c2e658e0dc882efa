"""What servers say, made fit to be shown and kept: texts, counts, and when to come back. Pure."""

MAX_TEXT = 300
_RETRY_AFTER_S = 1.0
_MAX_RETRY_AFTER_S = 60.0


def clean_text(text: str) -> str:
    """Return `text` on one line, without control characters, at most MAX_TEXT long."""
    if text.lstrip()[:1] == "<":
        return "an HTML page"
    head = text[: 4 * MAX_TEXT]
    line = " ".join("".join(c if c.isprintable() else " " for c in head).split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"


def read_count(count: int) -> int:
    """Return a count that everybody downstream can hold, whatever the server says."""
    return max(0, min(count, 2**31 - 1))


def read_retry_after(header: str | None) -> float:
    """Return seconds; the header's date form is not worth a clock."""
    if header and header.strip().isdecimal() and len(header) < 10:
        return min(float(header), _MAX_RETRY_AFTER_S)
    return _RETRY_AFTER_S
