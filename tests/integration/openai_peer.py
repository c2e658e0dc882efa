"""A scripted OpenAI-compatible server over real HTTP on loopback; records what it saw.

Without a script it behaves as vLLM does. A script takes over one route. The steps of scripts, and
how connections are served, are those of the Ollama peer.
"""

import base64
import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from tests.integration.ollama_peer import Exchange, PeerServer, Script, Step, answer, chunks

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MODELS = "/v1/models"
DONE = b"data: [DONE]\n\n"


def event(**fields: Any) -> bytes:
    """Return one event."""
    return b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n"


def delta(content: str | None = None, finish: str | None = None, **fields: Any) -> bytes:
    """Return a chunk of a chat; `logprobs` belongs to the choice, other fields to the delta."""
    if content is not None:
        fields["content"] = content
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    if "logprobs" in fields:
        choice["logprobs"] = fields.pop("logprobs")
    return event(
        id="c1", object="chat.completion.chunk", model="m", choices=[choice | {"delta": fields}]
    )


def usage(prompt: int = 7, completion: int = 3) -> bytes:
    """Return the chunk that tells the usage, as `stream_options` asks for it."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return event(id="c1", object="chat.completion.chunk", choices=[], usage=counts)


def call_part(index: int | None = 0, **fields: Any) -> dict[str, Any]:
    """Return a piece of a tool call; `name` and `arguments` belong to its function."""
    function = {key: fields.pop(key) for key in ("name", "arguments") if key in fields}
    head = {} if index is None else {"index": index}
    return head | fields | {"function": function}


def stream(steps: Iterable[Step], headers: Sequence[tuple[str, str]] = ()) -> Script:
    """Return a script that streams `steps` as server-sent events."""
    return chunks(steps, content_type="text/event-stream; charset=utf-8", headers=headers)


def words(*texts: str) -> Script:
    """Return a script that says `texts` and ends well."""
    return stream([*map(delta, texts), delta(finish="stop"), usage(7, len(texts)), DONE])


def vllm_error(status: int, message: str, kind: str = "BadRequestError") -> Script:
    error = {"message": message, "type": kind, "param": None, "code": status}
    return answer(status, json.dumps({"error": error}).encode())


class OpenAIPeer(PeerServer):
    """The server. With a `key` it asks for it; `ids` are the models that it lists and serves."""

    def __init__(self, port: int = 0, *, ids: Sequence[str] = ("m",), key: str = "") -> None:
        super().__init__(port)
        self.ids = list(ids)
        self.key = key
        self.max_model_len: int | None = 4096
        self.answer = "You said: {}"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    async def _dispatch(self, exchange: Exchange) -> None:
        seen = exchange.seen
        if self.key and seen.headers.get("authorization") != f"Bearer {self.key}":
            return await answer(401, b'{"error":"Unauthorized"}')(exchange)
        if seen.path == MODELS:
            return await self._list(exchange)
        serve = {CHAT: self._chat, COMPLETIONS: self._complete, EMBEDDINGS: self._embeddings}
        if seen.path not in serve:
            return await answer(404, b'{"detail":"Not Found"}')(exchange)
        asked = seen.body["model"]
        if asked not in self.ids:
            text = f"The model `{asked}` does not exist."
            return await vllm_error(404, text, "NotFoundError")(exchange)
        await serve[seen.path](exchange)

    async def _list(self, exchange: Exchange) -> None:
        lines = [
            {
                "id": name,
                "object": "model",
                "owned_by": "vllm",
                "root": name,
                "max_model_len": self.max_model_len,
            }
            for name in self.ids
        ]
        await exchange.json(200, {"object": "list", "data": lines})

    async def _chat(self, exchange: Exchange) -> None:
        content = exchange.seen.body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[0].get("text", "")
        head, *tail = self.answer.format(text).split(" ")
        said = [delta("", role="assistant"), *map(delta, [head, *(f" {word}" for word in tail)])]
        last = [usage(11, len(tail) + 1)] if exchange.seen.body.get("stream_options") else []
        await stream([*said, delta(finish="stop"), *last, DONE])(exchange)

    async def _complete(self, exchange: Exchange) -> None:
        prompt = exchange.seen.body["prompt"]
        parts = [
            event(choices=[{"index": 0, "text": text, "finish_reason": None}])
            for text in (prompt, "...")
        ]
        end = event(choices=[{"index": 0, "text": "", "finish_reason": "length"}])
        await stream([*parts, end, usage(5, 2), DONE])(exchange)

    async def _embeddings(self, exchange: Exchange) -> None:
        body = exchange.seen.body
        given = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vectors = [[float(len(each)), 3.0, 4.0, 0.5] for each in given]
        in_base64 = body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _pack(v) if in_base64 else v}
            for index, v in enumerate(vectors)
        ]
        counts = {"prompt_tokens": sum(map(len, given)), "total_tokens": 0}
        await exchange.json(200, {"object": "list", "data": data[::-1], "usage": counts})


def _pack(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
