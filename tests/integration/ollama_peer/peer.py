"""The Ollama server: without a script it behaves as Ollama does."""

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from gateway.core.errors import InvalidRequest
from gateway.core.names import normalise_ollama_name
from tests.integration.ollama_peer.exchange import Exchange
from tests.integration.ollama_peer.lines import CREATED, head_of, last_of, line, put_text, tool_call
from tests.integration.ollama_peer.models import Model, details_of
from tests.integration.ollama_peer.prompts import (
    count_prompt,
    cut_prompt,
    refuse,
    refuse_length,
    unit,
    words_of,
)
from tests.integration.ollama_peer.scripts import Script, answer
from tests.integration.ollama_peer.server import PeerServer

FOREVER = "2318-03-01T12:34:56.123456789Z"
SOON = "2027-01-01T00:05:00.987654321+01:00"


class OllamaPeer(PeerServer):
    """An Ollama server with the `models` that were added; `loaded` are those in memory."""

    def __init__(self, port: int = 0, token_delay_s: float = 0.0) -> None:
        super().__init__(port)
        self.models: dict[str, Model] = {}
        self.loaded: dict[str, str] = {}
        self.version = "0.33.0"
        self.default_context = 4096
        self.windows: dict[str, int] = {}
        self._token_delay_s = token_delay_s
        self._running: Counter[str] = Counter()
        self._unloading: set[str] = set()
        self._scripts: dict[str, Script] = {}

    def add_model(
        self,
        name: str,
        *,
        capabilities: Sequence[str] | None = ("completion",),
        size: int = 2_019_393_189,
        legacy: bool = False,
        answer: str | None = None,
        family: str = "llama",
        context_length: int = 131072,
    ) -> Model:
        """Install a model. `legacy`: the listing has no capabilities, a look at it does."""
        short = normalise_ollama_name(name)
        model = Model(
            name=short,
            capabilities=None if capabilities is None else list(capabilities),
            size=size,
            digest=hashlib.sha256(short.encode()).hexdigest(),
            family=family,
            context_length=context_length,
            answer=answer,
            legacy=legacy,
        )
        self.models[short.lower()] = model
        return model

    def load(self, name: str, expires_at: str = SOON) -> None:
        self.loaded[normalise_ollama_name(name).lower()] = expires_at

    def script(self, model: str, script: Script) -> None:
        """Answer chat and generate for `model`, installed or not, by `script`."""
        self._scripts[normalise_ollama_name(model).lower()] = script

    @property
    def knows_truncate(self) -> bool:
        """Whether this version refuses prompts that are too long when it is told to."""
        return tuple(map(int, self.version.split("."))) >= (0, 12, 6)

    def _window(self, body: dict[str, Any], model: Model) -> int:
        asked = (body.get("options") or {}).get("num_ctx") or self.default_context
        return min(int(asked), model.context_length)

    async def _dispatch(self, exchange: Exchange) -> None:
        path, method = exchange.seen.path, exchange.seen.method
        routes: dict[str, tuple[str, Script]] = {
            "/": ("GET", answer(200, b"Ollama is running", "text/plain; charset=utf-8")),
            "/api/version": ("GET", answer(200, line(version=self.version))),
            "/api/tags": ("GET", self._tags),
            "/api/ps": ("GET", self._ps),
            "/api/show": ("POST", self._show),
            "/api/chat": ("POST", self._chat),
            "/api/generate": ("POST", self._generate),
            "/api/embed": ("POST", self._embed),
            "/api/delete": ("DELETE", self._delete),
        }
        if path not in routes:
            return await answer(404, b"404 page not found", "text/plain")(exchange)
        verb, script = routes[path]
        if method != verb:
            return await answer(405, b"405 method not allowed", "text/plain")(exchange)
        await script(exchange)

    async def _tags(self, exchange: Exchange) -> None:
        models = []
        for model in self.models.values():
            details = details_of(model)
            entry = {
                "name": model.name,
                "model": model.name,
                "modified_at": CREATED,
                "size": model.size,
                "digest": model.digest,
                "details": details,
            }
            if not model.legacy and model.capabilities is not None:
                details |= {"context_length": model.context_length, "embedding_length": 3072}
                entry["capabilities"] = model.capabilities
            models.append(entry)
        await exchange.json(200, {"models": models})

    async def _ps(self, exchange: Exchange) -> None:
        models = [
            {
                "name": model.name,
                "model": model.name,
                "size": model.held_size,
                "digest": model.digest,
                "details": details_of(model),
                "expires_at": self.loaded[key],
                "size_vram": model.vram_size,
                "context_length": self.windows.get(key, self.default_context),
            }
            for key, model in self.models.items()
            if key in self.loaded
        ]
        await exchange.json(200, {"models": models})

    async def _show(self, exchange: Exchange) -> None:
        asked = exchange.seen.body.get("model", "")
        model = self._find(asked)
        if model is None:
            return await exchange.error(404, f"model '{asked}' not found")
        shown: dict[str, Any] = {
            "modelfile": "FROM x",
            "template": "{{ .Prompt }}",
            "details": details_of(model),
            "model_info": {
                "general.architecture": model.family,
                f"{model.family}.context_length": model.context_length,
            },
            "modified_at": CREATED,
        }
        if model.capabilities is not None:
            shown["capabilities"] = model.capabilities
        await exchange.json(200, shown)

    async def _chat(self, exchange: Exchange) -> None:
        await self._answer(exchange, "chat", "messages")

    async def _generate(self, exchange: Exchange) -> None:
        await self._answer(exchange, "generate", "prompt")

    async def _answer(self, exchange: Exchange, verb: str, prompt_key: str) -> None:
        try:
            body = exchange.seen.body
        except ValueError as error:
            return await exchange.error(400, str(error))
        asked = body.get("model", "")
        if not asked and verb == "chat":
            return await exchange.error(400, "model is required")
        with contextlib.suppress(InvalidRequest):
            key = normalise_ollama_name(asked).lower()
            if key in self._scripts:
                return await self._scripts[key](exchange)
        model = self._find(asked)
        if model is None:
            return await exchange.error(404, f"model '{asked}' not found")
        if refusal := refuse(body, model, asked, verb):
            return await exchange.error(*refusal)
        window = self._window(body, model)
        used = count_prompt(body, verb)
        if used > window and body.get("truncate") is False and self.knows_truncate:
            return await exchange.error(400, refuse_length(used, window))
        if used > window:
            used = cut_prompt(body, verb, window)
        key = model.name.lower()
        self.windows[key] = window
        if body.get("keep_alive") == 0:
            self._unload(key)
        else:
            self._unloading.discard(key)
            forever = isinstance(body.get("keep_alive"), int | float) and body["keep_alive"] < 0
            self.loaded[key] = FOREVER if forever else SOON
        if not body.get(prompt_key):
            reason = "unload" if body.get("keep_alive") == 0 else "load"
            return await exchange.json(200, last_of(asked, verb, reason))
        self._running[key] += 1
        try:
            await self._stream(exchange, body, model, verb, used)
        finally:
            self._running[key] -= 1
            if key in self._unloading:
                self._unload(key)

    def _unload(self, key: str) -> None:
        """Unload a model, or have it go when the last of its requests has ended."""
        if self._running[key]:
            self._unloading.add(key)
        elif not (key in self.models and self.models[key].stays):
            self._unloading.discard(key)
            self.loaded.pop(key, None)

    async def _stream(
        self, exchange: Exchange, body: dict[str, Any], model: Model, verb: str, used: int
    ) -> None:
        asked = body["model"]
        words = words_of(body, model, verb)
        limit = (body.get("options") or {}).get("num_predict", -1)
        cut = 0 <= limit < len(words)
        words = words[:limit] if cut else words
        if body.get("stream") is False:
            whole = last_of(asked, verb, "length" if cut else "stop", len(words), used)
            put_text(whole, verb, "".join(words))
            return await exchange.json(200, whole)
        await exchange.head(
            200, [("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked")]
        )
        lines: list[dict[str, Any]] = []
        if body.get("think") is not False and "thinking" in (model.capabilities or ()):
            lines.append(put_text(head_of(asked, False), verb, "", thinking="Let me think. "))
        lines += [put_text(head_of(asked, False), verb, word) for word in words]
        if body.get("tools"):
            called = tool_call(body["tools"][0]["function"]["name"], {"city": "Paris"})
            lines.append(put_text(head_of(asked, False), verb, "", tool_calls=[called]))
        lines.append(last_of(asked, verb, "length" if cut else "stop", len(words), used))
        for number, entry in enumerate(lines):
            data = line(**entry)
            await exchange.write(b"%x\r\n%b\r\n" % (len(data), data))
            if number == 0 and model.gate is not None:
                await model.gate.wait()
            if self._token_delay_s:
                await asyncio.sleep(self._token_delay_s)
        await exchange.write(b"0\r\n\r\n")

    async def _embed(self, exchange: Exchange) -> None:
        body = exchange.seen.body
        asked = body.get("model", "")
        model = self._find(asked)
        if model is None:
            text = f'model "{asked}" not found, try pulling it first'
            return await exchange.error(404, text)
        if "embedding" not in (model.capabilities or ["embedding"]):
            return await exchange.error(400, f'"{asked}" does not support embeddings')
        given = body["input"]
        texts = [given] if isinstance(given, str) else given
        if not all(isinstance(text, str) for text in texts):
            return await exchange.error(400, "invalid input type")
        words = [text.split() for text in texts]
        if any(len(each) > model.context_length for each in words):
            if body.get("truncate") is False:
                return await exchange.error(400, "the input length exceeds the context length")
            words = [each[: model.context_length] for each in words]
        vectors = [unit([len(each), *map(len, each[:2]), 1.0, 2.0, 3.0][:4]) for each in words]
        counted = sum(map(len, words))
        found = {"model": asked, "embeddings": vectors, "total_duration": 5_000_000}
        await exchange.json(200, found | ({"prompt_eval_count": counted} if counted else {}))

    async def _delete(self, exchange: Exchange) -> None:
        asked = exchange.seen.body.get("model", "")
        model = self._find(asked)
        if model is None:
            return await exchange.error(404, f"model '{asked}' not found")
        key = normalise_ollama_name(model.name).lower()
        del self.models[key]
        self.loaded.pop(key, None)
        await answer(200, b"", "text/plain; charset=utf-8")(exchange)

    def _find(self, asked: str) -> Model | None:
        try:
            return self.models.get(normalise_ollama_name(asked).lower())
        except InvalidRequest:
            return None
