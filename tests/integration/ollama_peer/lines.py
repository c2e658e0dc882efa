"""The lines of Ollama's answers."""

import json
from typing import Any

CREATED = "2026-11-20T10:11:12.123456789Z"

TEMPLATE_TOKENS = 10


def line(**fields: Any) -> bytes:
    """Return one NDJSON line."""
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def chat_line(content: str = "", model: str = "llama3.2", **fields: Any) -> bytes:
    """Return a line of a chat that is not its last; `thinking` and `tool_calls` may be given."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    for key in ("thinking", "tool_calls"):
        if key in fields:
            message[key] = fields.pop(key)
    head = {"model": model, "created_at": CREATED, "message": message, "done": False}
    return line(**{**head, **fields})


def chat_end(content: str = "", reason: str | None = "stop", **fields: Any) -> bytes:
    """Return the last line of a chat, with metrics unless `metrics=False`."""
    counts = {"prompt_eval_count": 7, "eval_count": 3, "eval_duration": 42, "total_duration": 99}
    if not fields.pop("metrics", True):
        counts = {}
    if reason is not None:
        fields["done_reason"] = reason
    return chat_line(content, done=True, **counts, **fields)


def tool_call(name: str, arguments: Any, call_id: str | None = None) -> dict[str, Any]:
    call: dict[str, Any] = {"function": {"index": 0, "name": name, "arguments": arguments}}
    if call_id is not None:
        call["id"] = call_id
    return call


def head_of(asked: str, done: bool) -> dict[str, Any]:
    return {"model": asked, "created_at": CREATED, "done": done}


def put_text(entry: dict[str, Any], verb: str, text: str, **fields: Any) -> dict[str, Any]:
    if verb == "chat":
        entry["message"] = {"role": "assistant", "content": text, **fields}
    else:
        entry |= {"response": text, **fields}
    return entry


def last_of(
    asked: str, verb: str, reason: str, tokens: int = 0, used: int = TEMPLATE_TOKENS
) -> dict[str, Any]:
    entry = put_text(head_of(asked, True), verb, "") | {"done_reason": reason}
    if reason in ("stop", "length"):
        entry |= {"total_duration": 5_000_000, "load_duration": 1_000_000}
        entry |= {"prompt_eval_count": used, "eval_count": tokens, "eval_duration": 3_000_000}
    return entry
