"""Logs: one line (or one JSON object) an event, each with the ids of the request it belongs to."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request that the running task works for."""
decision_id: ContextVar[str] = ContextVar("decision_id", default="")
"""The id of its decision record, which is that of its stream, once it has one."""


@contextmanager
def of_no_request() -> Iterator[None]:
    """Whatever begins within belongs to no request, though one needs it."""
    tokens = request_id.set("-"), decision_id.set("")
    try:
        yield
    finally:
        request_id.reset(tokens[0])
        decision_id.reset(tokens[1])


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
        }
        if decision := decision_id.get():
            entry["decision_id"] = decision
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.ids = f"{request_id.get()} {decision_id.get()}".rstrip()
        return super().format(record)


def configure_logging(level: str, style: Literal["text", "json"]) -> None:
    """Send the gateway's and its libraries' logs to stderr in one form."""
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(
            _TextFormatter("%(asctime)s %(levelname)-7s %(name)s [%(ids)s] %(message)s")
        )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # These speak of every request and every connection at info.
    for noisy in (
        *("httpx", "httpcore", "httpx2", "httpcore2", "aiosqlite", "alembic", "sse_starlette"),
        "uvicorn.access",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # At debug it writes down the headers and messages of WebSockets, keys included.
    logging.getLogger("uvicorn.error").setLevel(max(logging.INFO, logging.root.level))
