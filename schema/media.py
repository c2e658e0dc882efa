"""Media types: which one the client wants, and which ones a body may have. Pure.

Source: the GraphQL-over-HTTP specification, and RFC 9110, section 12.5.1, for Accept.
"""

from collections.abc import Iterator

RESPONSE = "application/graphql-response+json"
JSON = "application/json"
HTML = "text/html"
EVENT_STREAM = "text/event-stream"

_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})


def choose_media_type(accept: str) -> str | None:
    """Return the type to answer in, or None when `accept` allows neither.

    A client that names both equally gets RESPONSE; one that names none (`*/*`, or no header at
    all) gets JSON, which every client reads.
    """
    if not accept.strip():
        return JSON
    ranges = dict(_ranges(accept))
    ranked = []
    for is_modern, media_type in enumerate((JSON, RESPONSE)):
        matches = [media_type, "application/*", "*/*"]
        match = next((name for name in matches if name in ranges), None)
        if match and ranges[match] > 0:
            is_named = match == media_type
            ranked.append((ranges[match], is_named, is_modern == is_named, media_type))
    return max(ranked)[-1] if ranked else None


def is_browser(accept: str) -> bool:
    """Tell whether a person is looking: only browsers name HTML."""
    return dict(_ranges(accept)).get(HTML, 0) > 0


def accepts_events(accept: str) -> bool:
    """Tell whether a stream of events may be the answer: only clients that can read one name it."""
    return dict(_ranges(accept)).get(EVENT_STREAM, 0) > 0


def is_json(content_type: str) -> bool:
    """Tell whether a body of that type is JSON in UTF-8."""
    media_type, *parameters = (part.strip().lower() for part in content_type.split(";"))
    charsets = [p.partition("=")[2].strip('"') for p in parameters if p.startswith("charset=")]
    return media_type == JSON and all(charset in ("utf-8", "utf8") for charset in charsets)


def is_form(content_type: str) -> bool:
    """Tell whether any web page may send that type to us without being asked (no preflight)."""
    return content_type.partition(";")[0].strip().lower() in _FORMS


def _ranges(accept: str) -> Iterator[tuple[str, float]]:
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weights = [p.partition("=")[2] for p in parameters if p.startswith("q=")]
        try:
            yield name, float(weights[0]) if weights else 1.0
        except ValueError:
            yield name, 0.0
