"""Ready bytes of Ollama's answers: its own `/api/chat` and its OpenAI face. HTTP heads and chunks
are in them, and a place for the nonce that makes an answer one request's own."""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

MODEL = "bench"
WORD = " token"
CREATED = "2026-11-20T10:11:12.123456789Z"
PROMPT_TOKENS = 26
NO_NONCE = "00000000"
LAST_CHUNK = b"0\r\n\r\n"


class Ask(NamedTuple):
    """What a prompt asks of the mock: so many tokens, the first at once, then one each
    `interval_ms`; 0 sends all of them in one write. `nonce` has 8 characters."""

    tokens: int
    interval_ms: int
    nonce: str = NO_NONCE

    @property
    def prompt(self) -> str:
        return f"{self.tokens} {self.interval_ms} {self.nonce}"

    @property
    def text(self) -> str:
        """The one right answer."""
        return self.nonce + WORD * (self.tokens - 1)

    @classmethod
    def read(cls, prompt: str) -> "Ask":
        tokens, interval_ms, nonce = prompt.split()
        return cls(int(tokens), int(interval_ms), nonce)


class Wire(NamedTuple):
    """One protocol. A stream is `head`, `first` with the nonce, `token` for each other token, and
    what `end` makes of the number of tokens and of whether usage was asked for."""

    head: bytes
    first: bytes
    token: bytes
    end: Callable[[int, bool], bytes]
    piece: Callable[[int], bytes]
    """The whole answer of so many tokens, a place for the nonce in it."""


def with_nonce(template: bytes, nonce: str) -> bytes:
    return template.replace(NO_NONCE.encode(), nonce.encode(), 1)


def chunk(text: str) -> bytes:
    return b"%x\r\n%b\r\n" % (len(text), text.encode())


def stream_head(content_type: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode()


def json_reply(value: object, status: str = "200 OK") -> bytes:
    body = json.dumps(value)
    kind = "Content-Type: application/json; charset=utf-8"
    return f"HTTP/1.1 {status}\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def words(tokens: int) -> str:
    return Ask(tokens, 0).text


# --- /api/chat ---------------------------------------------------------------------------------


def chat_line(content: str, **fields: object) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"model": MODEL, "created_at": CREATED, "message": message, "done": False, **fields}


def chat_last(content: str, tokens: int) -> dict[str, Any]:
    return chat_line(
        content,
        done=True,
        done_reason="stop",
        total_duration=174560334,
        load_duration=101397084,
        prompt_eval_count=PROMPT_TOKENS,
        prompt_eval_duration=13074791,
        eval_count=tokens,
        eval_duration=52479709,
    )


@lru_cache
def chat_end(tokens: int, usage: bool) -> bytes:
    return chunk(json.dumps(chat_last("", tokens)) + "\n") + LAST_CHUNK


@lru_cache
def chat_piece(tokens: int) -> bytes:
    return json_reply(chat_last(words(tokens), tokens))


CHAT = Wire(
    stream_head("application/x-ndjson"),
    chunk(json.dumps(chat_line(NO_NONCE)) + "\n"),
    chunk(json.dumps(chat_line(WORD)) + "\n"),
    chat_end,
    chat_piece,
)


# --- /v1/chat/completions ----------------------------------------------------------------------


def openai_reply(kind: str, choices: list[dict[str, Any]], **fields: object) -> dict[str, Any]:
    head = {"id": "chatcmpl-271", "object": kind, "created": 1795169472, "model": MODEL}
    return {**head, "system_fingerprint": "fp_ollama", "choices": choices, **fields}


def openai_event(content: str, finish: str | None = None) -> str:
    delta = {"role": "assistant", "content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps(openai_reply('chat.completion.chunk', [choice]))}\n\n"


def openai_usage(tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": tokens,
        "total_tokens": PROMPT_TOKENS + tokens,
    }


@lru_cache
def openai_end(tokens: int, usage: bool) -> bytes:
    last = openai_reply("chat.completion.chunk", [], usage=openai_usage(tokens))
    parts = [
        openai_event("", "stop"),
        *([f"data: {json.dumps(last)}\n\n"] if usage else []),
        "data: [DONE]\n\n",
    ]
    return b"".join(map(chunk, parts)) + LAST_CHUNK


@lru_cache
def openai_piece(tokens: int) -> bytes:
    message = {"role": "assistant", "content": words(tokens)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json_reply(openai_reply("chat.completion", [choice], usage=openai_usage(tokens)))


OPENAI = Wire(
    stream_head("text/event-stream"),
    chunk(openai_event(NO_NONCE)),
    chunk(openai_event(WORD)),
    openai_end,
    openai_piece,
)


# --- what is asked beside chats ----------------------------------------------------------------

DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "3.2B",
    "quantization_level": "Q4_K_M",
    "context_length": 131072,
}
CAPABILITIES = ["completion", "tools"]
LISTED = {
    "name": f"{MODEL}:latest",
    "model": f"{MODEL}:latest",
    "size": 2019393189,
    "digest": "a80c4f17acd55265feec403c7aef86be0c25983ab279d83f3bcd3abbcb5b8b72",
    "details": DETAILS,
}
OTHERS = {
    "/": b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\nOllama is running",
    "/api/version": json_reply({"version": "0.33.0"}),
    "/api/tags": json_reply(
        {"models": [{**LISTED, "modified_at": CREATED, "capabilities": CAPABILITIES}]}
    ),
    "/api/ps": json_reply(
        {
            "models": [
                {
                    **LISTED,
                    "expires_at": "2318-03-01T12:34:56.123456789Z",
                    "size_vram": 2019393189,
                    "context_length": 131072,
                }
            ]
        }
    ),
    "/api/show": json_reply(
        {
            "modelfile": "FROM bench",
            "parameters": "",
            "template": "{{ .Prompt }}",
            "details": DETAILS,
            "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
            "capabilities": CAPABILITIES,
            "modified_at": CREATED,
        }
    ),
    "/v1/models": json_reply(
        {
            "object": "list",
            "data": [
                {"id": MODEL, "object": "model", "created": 1795169472, "owned_by": "library"}
            ],
        }
    ),
}
