"""A scripted Ollama server over real HTTP on loopback, exact to the byte; records what it saw.

Without a script it behaves as Ollama does (docs/api.md, server/routes.go). A script takes over the
answers of one model's chat and generate, or of one route. By hand:

    python -m tests.integration.ollama_peer --port 11434
"""

import argparse
import asyncio
import base64
import binascii
import contextlib
import hashlib
import json
import math
import re
import socket
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Any, Self

from gateway.core.errors import InvalidRequest
from gateway.core.names import normalise_ollama_name

FOREVER = "2318-03-01T12:34:56.123456789Z"
SOON = "2027-01-01T00:05:00.987654321+01:00"
CREATED = "2026-11-20T10:11:12.123456789Z"


TEMPLATE_TOKENS = 10


class Do(Enum):
    """Steps of a script that are no bytes."""

    RESET = auto()  # a TCP reset, as when the server is killed
    CLOSE = auto()  # the connection ends without the end of the HTTP message


Step = bytes | asyncio.Event | Do
Script = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Seen:
    """One request as it arrived. `closed` is set when the client goes before the answer's end."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    connection: int
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    async def until_closed(self) -> None:
        """Wait for `closed`; a client that stays is a failure and no hang."""
        async with asyncio.timeout(10):
            await self.closed.wait()


@dataclass
class Model:
    """An installed model; `capabilities` None makes the listing one of an older server.

    An answer that streams waits for `gate` after its first line; `vram_size` of what it holds once
    it is loaded are on a GPU. One that `stays` is not unloaded when it is told to.
    """

    name: str
    capabilities: list[str] | None
    size: int
    digest: str
    family: str = "llama"
    parameter_size: str = "3.2B"
    context_length: int = 131072
    answer: str | None = None
    legacy: bool = False
    gate: asyncio.Event | None = None
    vram_size: int = 0
    stays: bool = False

    @property
    def held_size(self) -> int:
        return self.size + 1_000_000


def chunks(
    steps: Iterable[Step],
    *,
    status: int = 200,
    content_type: str = "application/x-ndjson",
    headers: Sequence[tuple[str, str]] = (),
) -> Script:
    """Return a script that streams `steps`: each bytes a chunk of its own, each event a wait."""
    wanted = list(steps)

    async def play(exchange: "Exchange") -> None:
        await exchange.head(
            status, [("Content-Type", content_type), ("Transfer-Encoding", "chunked"), *headers]
        )
        for step in wanted:
            if isinstance(step, bytes):
                await exchange.write(b"%x\r\n%b\r\n" % (len(step), step))
            elif not await exchange.do(step):
                return
        await exchange.write(b"0\r\n\r\n")

    return play


def answer(
    status: int,
    body: bytes = b"",
    content_type: str = "application/json; charset=utf-8",
    headers: Sequence[tuple[str, str]] = (),
) -> Script:
    """Return a script that answers with one whole message."""

    async def play(exchange: "Exchange") -> None:
        await exchange.head(
            status,
            [("Content-Type", content_type), ("Content-Length", str(len(body))), *headers],
        )
        await exchange.write(body)

    return play


def raw(steps: Iterable[Step]) -> Script:
    """Return a script that writes `steps` as they are, HTTP or not, and closes."""
    wanted = list(steps)

    async def play(exchange: "Exchange") -> None:
        for step in wanted:
            if isinstance(step, bytes):
                await exchange.write(step)
            elif not await exchange.do(step):
                return
        exchange.hang_up()

    return play


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


class _Connection(asyncio.StreamReaderProtocol):
    """Tells at once when the client closes, also while nobody reads."""

    def __init__(self, peer: "OllamaPeer") -> None:
        # Wide enough that reading never pauses: a paused transport would not see the close.
        self.stream = asyncio.StreamReader(limit=2**28)
        self.gone = asyncio.Event()
        super().__init__(self.stream, peer._accept)

    def eof_received(self) -> bool | None:
        self.gone.set()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        super().connection_lost(exc)


class Exchange:
    """One request and its answer, while it is being answered."""

    def __init__(self, seen: Seen, writer: asyncio.StreamWriter, gone: asyncio.Event) -> None:
        self.seen = seen
        self.open = True
        self._writer = writer
        self._gone = gone

    async def head(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{key}: {value}" for key, value in headers)]
        await self.write("\r\n".join([*lines, "", ""]).encode())

    async def write(self, data: bytes) -> None:
        """Write and let the other side read it by itself; raises when it has gone."""
        if self._gone.is_set():
            raise ConnectionResetError
        self._writer.write(data)
        await self._writer.drain()
        # Some turns of the loop, so that a client on it takes these bytes apart from the next.
        for _ in range(3):
            await asyncio.sleep(0)

    async def do(self, step: asyncio.Event | Do) -> bool:
        """Do a step that is no bytes; tell whether the script goes on."""
        if isinstance(step, asyncio.Event):
            await step.wait()
            return True
        if step is Do.RESET:
            linger = struct.pack("ii", 1, 0)
            connection: socket.socket = self._writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._writer.transport.abort()
        self.hang_up()
        return False

    def hang_up(self) -> None:
        self.open = False

    async def json(self, status: int, value: Any) -> None:
        await answer(status, json.dumps(value).encode())(self)

    async def error(self, status: int, text: str) -> None:
        await self.json(status, {"error": text})


class OllamaPeer:
    """The server. Everything it saw is in `requests`, oldest first."""

    def __init__(self, port: int = 0, token_delay_s: float = 0.0) -> None:
        self.requests: list[Seen] = []
        self.models: dict[str, Model] = {}
        self.loaded: dict[str, str] = {}
        self.version = "0.33.0"
        self.default_context = 4096
        self.windows: dict[str, int] = {}
        self.connections = 0
        self._port = port
        self._token_delay_s = token_delay_s
        self._running: Counter[str] = Counter()
        self._unloading: set[str] = set()
        self._scripts: dict[str, Script] = {}
        self._routes: dict[str, Script] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self._port, backlog=2048
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._tasks)

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            # One that is being accepted when the server closes is left open for ever (asyncio's
            # Server._attach fails): accept no more, and let those have their tasks first.
            loop = asyncio.get_running_loop()
            for listener in self._server.sockets:
                loop.remove_reader(listener.fileno())
            for _ in range(5):
                await asyncio.sleep(0)
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def restart(self) -> None:
        """Listen again on the port of before, after `stop`."""
        await self.__aenter__()

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

    def script_route(self, path: str, script: Script) -> None:
        """Answer every request to `path` by `script`."""
        self._routes[path] = script

    async def request(self, index: int = 0, path: str | None = None) -> Seen:
        """Return the request of that index (to `path`), waiting until it has arrived."""

        def found() -> list[Seen]:
            return [seen for seen in self.requests if path is None or seen.path == path]

        async with self._arrived:
            await self._arrived.wait_for(lambda: len(found()) > index)
        return found()[index]

    @property
    def knows_truncate(self) -> bool:
        """Whether this version refuses prompts that are too long when it is told to."""
        return tuple(map(int, self.version.split("."))) >= (0, 12, 6)

    def _window(self, body: dict[str, Any], model: Model) -> int:
        asked = (body.get("options") or {}).get("num_ctx") or self.default_context
        return min(int(asked), model.context_length)

    def seen(self, path: str) -> list[Seen]:
        return [seen for seen in self.requests if seen.path == path]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        protocol = writer.transport.get_protocol()
        assert isinstance(protocol, _Connection)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._serve_one(reader, writer, protocol.gone, number):
                    pass
        except asyncio.CancelledError:
            # asyncio's stream callback logs a cancelled task; stopping is the end it waits for.
            pass
        finally:
            writer.close()
            try:
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
            except asyncio.CancelledError:
                # The client does not read what was written last.
                writer.transport.abort()
            self._tasks.discard(task)

    async def _serve_one(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gone: asyncio.Event,
        number: int,
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        start, *lines = head.rstrip().split("\r\n")
        method, path, _ = start.split(" ")
        pairs = (text.split(":", 1) for text in lines)
        headers = {key.strip().lower(): value.strip() for key, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        seen = Seen(method, path, headers, body, number)
        exchange = Exchange(seen, writer, gone)
        watch = asyncio.create_task(self._watch(seen, gone))
        self.requests.append(seen)
        async with self._arrived:
            self._arrived.notify_all()
        try:
            await self._dispatch(exchange)
            seen.answered.set()
        finally:
            watch.cancel()
            if gone.is_set() and not seen.answered.is_set():
                seen.closed.set()
        return exchange.open

    async def _watch(self, seen: Seen, gone: asyncio.Event) -> None:
        await gone.wait()
        if not seen.answered.is_set():
            seen.closed.set()

    async def _dispatch(self, exchange: Exchange) -> None:
        path, method = exchange.seen.path, exchange.seen.method
        if path in self._routes:
            return await self._routes[path](exchange)
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
            details = _details(model)
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
                "details": _details(model),
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
            "details": _details(model),
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
        if refusal := _refusal(body, model, asked, verb):
            return await exchange.error(*refusal)
        window = self._window(body, model)
        used = _count_prompt(body, verb)
        if used > window and body.get("truncate") is False and self.knows_truncate:
            return await exchange.error(400, _refuse_length(used, window))
        if used > window:
            used = _cut_prompt(body, verb, window)
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
            return await exchange.json(200, _last(asked, verb, reason))
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
        words = _words(body, model, verb)
        limit = (body.get("options") or {}).get("num_predict", -1)
        cut = 0 <= limit < len(words)
        words = words[:limit] if cut else words
        if body.get("stream") is False:
            whole = _last(asked, verb, "length" if cut else "stop", len(words), used)
            _put(whole, verb, "".join(words))
            return await exchange.json(200, whole)
        await exchange.head(
            200, [("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked")]
        )
        lines: list[dict[str, Any]] = []
        if body.get("think") is not False and "thinking" in (model.capabilities or ()):
            lines.append(_put(_head(asked, False), verb, "", thinking="Let me think. "))
        lines += [_put(_head(asked, False), verb, word) for word in words]
        if body.get("tools"):
            called = tool_call(body["tools"][0]["function"]["name"], {"city": "Paris"})
            lines.append(_put(_head(asked, False), verb, "", tool_calls=[called]))
        lines.append(_last(asked, verb, "length" if cut else "stop", len(words), used))
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
        vectors = [_unit([len(each), *map(len, each[:2]), 1.0, 2.0, 3.0][:4]) for each in words]
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


def _refusal(body: dict[str, Any], model: Model, asked: str, verb: str) -> tuple[int, str] | None:
    """Return status and text of what Ollama would refuse, before it looks at the prompt."""
    can = model.capabilities or ["completion"]
    full = f"registry.ollama.ai/library/{model.name}"
    wants = body.get("format")
    images = [
        image for message in body.get("messages") or () for image in message.get("images", [])
    ]
    for image in images:
        try:
            base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            return 400, "illegal base64 data at input byte 0"
    if "completion" not in can:
        return 400, f'"{asked}" does not support {verb}'
    if body.get("tools") and "tools" not in can:
        return 400, f"{full} does not support tools"
    if images and "vision" not in can:
        return 400, f"{full} does not support vision"
    if body.get("think") and "thinking" not in can:
        return 400, f'"{asked}" does not support thinking'
    if wants not in (None, "", "json") and not isinstance(wants, dict):
        return 500, f"invalid format: {wants!r}; expected 'json' or a JSON schema"
    if isinstance(body.get("keep_alive"), str) and body["keep_alive"].isdigit():
        return 400, f'time: missing unit in duration "{body["keep_alive"]}"'
    return None


def _count_prompt(body: dict[str, Any], verb: str) -> int:
    """Return the tokens of a prompt: one a word, and those of the template."""
    texts = [body.get("prompt") or ""]
    if verb == "chat":
        texts = [message.get("content", "") for message in body.get("messages") or ()]
    return TEMPLATE_TOKENS + sum(len(text.split()) for text in texts)


def _cut_prompt(body: dict[str, Any], verb: str, window: int) -> int:
    """Cut a prompt to the window as Ollama does, without a word; return its tokens then.

    The oldest messages go but for the system's and the newest; what is still too long loses its
    middle, and fills the window.
    """
    messages = body.get("messages") or []
    while verb == "chat" and _count_prompt(body, verb) > window:
        old = [each for each in messages[:-1] if each.get("role") != "system"]
        if not old:
            break
        messages.remove(old[0])
    return min(_count_prompt(body, verb), window)


def _refuse_length(used: int, window: int) -> str:
    """Return the text of the refusal: the body of the inner server, JSON as it is."""
    text = (
        f"the request exceeds the available context size ({used} tokens, {window} are there), "
        "try increasing it"
    )
    inner = {"code": 400, "message": text, "type": "exceed_context_size_error"}
    return json.dumps({"error": {**inner, "n_prompt_tokens": used, "n_ctx": window}})


def _unit(numbers: Sequence[float]) -> list[float]:
    length = math.hypot(*numbers)
    return [number / length for number in numbers]


def _words(body: dict[str, Any], model: Model, verb: str) -> list[str]:
    if body.get("format"):
        text = '{"answer": 42}'
    elif model.answer is not None:
        text = model.answer
    else:
        text = f"You said: {_asked(body, verb)[:2000]}"
    if verb == "chat" and body["messages"][-1].get("role") == "assistant":
        # The message is open: the model goes on with it.
        return re.findall(r"\s*\S+|\s+", text.removeprefix(body["messages"][-1]["content"]))
    head, *tail = text.split(" ")
    return [head, *(f" {word}" for word in tail)]


def _asked(body: dict[str, Any], verb: str) -> str:
    if verb == "generate":
        return str(body["prompt"])
    messages = body["messages"]
    is_open = messages[-1].get("role") == "assistant" and len(messages) > 1
    return str(messages[-2 if is_open else -1].get("content", ""))


def _head(asked: str, done: bool) -> dict[str, Any]:
    return {"model": asked, "created_at": CREATED, "done": done}


def _put(entry: dict[str, Any], verb: str, text: str, **fields: Any) -> dict[str, Any]:
    if verb == "chat":
        entry["message"] = {"role": "assistant", "content": text, **fields}
    else:
        entry |= {"response": text, **fields}
    return entry


def _last(
    asked: str, verb: str, reason: str, tokens: int = 0, used: int = TEMPLATE_TOKENS
) -> dict[str, Any]:
    entry = _put(_head(asked, True), verb, "") | {"done_reason": reason}
    if reason in ("stop", "length"):
        entry |= {"total_duration": 5_000_000, "load_duration": 1_000_000}
        entry |= {"prompt_eval_count": used, "eval_count": tokens, "eval_duration": 3_000_000}
    return entry


def _details(model: Model) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": None,
        "parameter_size": model.parameter_size,
        "quantization_level": "Q4_K_M",
    }


async def _serve(port: int, token_delay_s: float) -> None:
    async with OllamaPeer(port, token_delay_s) as peer:
        peer.add_model("llama3.2:latest", capabilities=["completion", "tools"])
        peer.add_model("qwen3:8b", capabilities=["completion", "tools", "thinking"])
        peer.add_model("llava:7b", capabilities=["completion", "vision"])
        peer.add_model("nomic-embed-text", capabilities=["embedding"], family="nomic-bert")
        peer.load("llama3.2:latest")
        sys.stdout.write(f"{peer.url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


def main() -> None:
    """Serve a few models with canned answers until interrupted."""
    parser = argparse.ArgumentParser(description="A make-believe Ollama server.")
    parser.add_argument("--port", type=int, default=11434)
    parser.add_argument("--token-delay-s", type=float, default=0.05)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.port, options.token_delay_s))


if __name__ == "__main__":
    main()
