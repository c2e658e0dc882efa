"""The GraphiQL page: one document that holds all it needs and asks the network for nothing.

The parts are those of npm, unchanged (graphiql/README.md); the browser is told to run nothing
else, and to talk to nobody but this gateway.
"""

import base64
import hashlib
from pathlib import Path

import msgspec

_PARTS = Path(__file__).parent / "graphiql"
_SCRIPTS = ("react.production.min.js", "react-dom.production.min.js", "graphiql.min.js", "start.js")


class Page(msgspec.Struct, frozen=True):
    """An HTML page and the headers that belong to it."""

    html: bytes
    headers: dict[str, str]


def load_page() -> Page:
    """Return GraphiQL for the address it is served at. Reads 1.5 MB of files."""
    scripts = [(_PARTS / name).read_bytes() for name in _SCRIPTS]
    html = (_PARTS / "page.html").read_bytes()
    html = html.replace(b"/* styles */", (_PARTS / "graphiql.min.css").read_bytes())
    tags = b"\n".join(b"<script>" + script + b"</script>" for script in scripts)
    return Page(
        html=html.replace(b"<!-- scripts -->", tags),
        headers={
            "content-security-policy": _policy(scripts),
            "cache-control": "no-cache",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        },
    )


def _policy(scripts: list[bytes]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts]
    return "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(f"'sha256-{value}'" for value in hashes),
            # The editor sets style attributes; fonts and icons are in the style sheet.
            "style-src 'unsafe-inline'",
            "font-src data:",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
