"""What failures of an OpenAI-compatible server mean: statuses, bodies, broken connections. Pure.

Servers agree on statuses more than on bodies: OpenAI, vLLM, SGLang and llama.cpp send an object
with a message, older ones put its fields at the top, TGI and FastAPI send a text or a list.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.core.errors import (
    ContextLengthExceeded,
    EngineFailed,
    GatewayError,
    IncompleteStream,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
    ProviderError,
    ProviderProtocolError,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    UnsupportedCapability,
)
from gateway.core.names import ModelRef
from gateway.providers.http1_wire import (
    ConnectionLost,
    ConnectTimedOut,
    ReplyTimedOut,
    StillBusy,
    TransportError,
    Unreachable,
)
from gateway.providers.text_wire import MAX_TEXT, clean_text, read_retry_after

_CONTEXT = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|maximum model length"
    r"|longer than the model's context|exceeds? the (available |model's )?(context|maximum)"
    r"|exceed context window|`inputs` must have less than|`inputs` tokens \+ `max_new_tokens`",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"model_not_found|NotFoundError|model.{0,400}(does not exist|not found|no such model)",
    re.IGNORECASE | re.DOTALL,
)
_UNSUPPORTED = re.compile(
    r"does(?: not|n't) support\b|is not a multimodal model|not_supported_error"
    r"|auto.{0,3} tool choice requires|unsupported_(parameter|value)",
    re.IGNORECASE,
)
_OUT_OF_QUOTA = "insufficient_quota"
_NO_ROUTE_BODIES = ("not found", "method not allowed", "404 page not found", "file not found")
_MAY_LACK = {"/embeddings": "embeddings", "/completions": "prompts that are no chat"}
_ABOUT = (
    (re.compile(r"embed", re.IGNORECASE), "model"),
    (re.compile(r"image|multimodal|vision|mmproj", re.IGNORECASE), "messages"),
    (re.compile(r"tool", re.IGNORECASE), "tools"),
)


def read_said(body: bytes) -> str:
    """Return the text of an error body, cleaned and cut to MAX_TEXT; may be empty."""
    text = body[: 64 * 1024].decode("utf-8", "replace")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return clean_text(text)
    return clean_text(_find_text(value) or text)


class Faults:
    """Puts what goes wrong with one server into our errors.

    The key is taken out of whatever the server says: some repeat it.
    """

    def __init__(self, provider: str, urls: Sequence[str], key: str = "") -> None:
        self.provider = provider
        self._urls = ", ".join(urls)
        self._key = key

    def said(self, body: bytes) -> str:
        """Return what an error body says, fit to be shown."""
        return read_said(body.replace(self._key.encode(), b"[key]") if self._key else body)

    def of_status(
        self,
        status: int,
        body: bytes,
        ref: ModelRef | None,
        *,
        path: str = "",
        retry_after: str | None = None,
    ) -> GatewayError:
        """Return the error that an answer to `path` with `status` (not 200) and `body` means."""
        said, name = self.said(body), self.provider
        quoted = f": {said}" if said else "."
        match status:
            case 401 | 403:
                return ProviderRejected(
                    name,
                    f"{name} refused access ({status}){quoted}",
                    hint=f"The operator gives the key of '{name}' with its URLs.",
                )
            case 429 if _OUT_OF_QUOTA in body.decode("utf-8", "replace"):
                return ProviderRejected(name, f"{name} has no quota left{quoted}")
            case 429 | 503:
                wait_s = read_retry_after(retry_after)
                return Overloaded(f"{name} is busy{quoted}", retry_after_s=wait_s)
            case 404 | 405 if _is_no_route(said):
                return self._no_route(path, status)
            case 502:
                return ProviderUnavailable(name, f"Nothing answers behind {name}{quoted}")
            case 408 | 504:
                return ProviderTimeout(name, f"{name} took too long{quoted}")
        by_text = self._by_text(said, body, ref)
        if by_text is not None:
            return by_text
        match status:
            case 404 if ref is not None:
                return ModelNotFound(str(ref), message=f"{name} has no model '{ref.model}'{quoted}")
            case 413:
                return PayloadTooLarge(f"The request is larger than {name} takes{quoted}")
            case 501:
                return UnsupportedCapability(f"{name} cannot do this{quoted}", param="model")
            case _ if 300 <= status < 400:
                return self.wrong_server(f"answered a redirect ({status}), which is never followed")
            case _ if 400 <= status < 500:
                return ProviderRejected(name, f"{name} refused the request ({status}){quoted}")
            case _ if status >= 500:
                return EngineFailed(f"{name} failed before it answered ({status}){quoted}")
        return self.wrong_server(f"answered with status {status}")

    def of_event(self, error: bytes, ref: ModelRef) -> GatewayError:
        """Return what an error inside a stream means; `error` is the JSON value that holds it."""
        said = self.said(error)
        by_text = self._by_text(said, error, ref)
        if by_text is not None:
            return by_text
        return ProviderError(self.provider, f"{self.provider} failed while it generated: {said}")

    def of_transport(self, error: TransportError, started: bool) -> GatewayError:
        """Return what a failed exchange means; `started` tells whether an answer had begun."""
        name = self.provider
        match error:
            case ConnectTimedOut():
                return ProviderTimeout(
                    name, f"{name} at {self._urls} did not accept a connection in time."
                )
            case Unreachable():
                return ProviderUnavailable(
                    name,
                    f"{name} at {self._urls} cannot be reached.",
                    hint="Does the server run, and are its URLs right?",
                )
            case StillBusy():
                return Overloaded(f"{name} is still at {error} requests, of some nobody waits for.")
            case ReplyTimedOut():
                return ProviderTimeout(name, f"{name} was silent for too long.")
            case ConnectionLost() if started:
                return IncompleteStream(name, f"The connection to {name} broke during the answer.")
            case ConnectionLost():
                return ProviderUnavailable(name, f"{name} closed the connection without an answer.")
        return self.wrong_server(f"does not speak HTTP as it should: {error}")

    def incomplete(self) -> IncompleteStream:
        """Return the error for an answer that stops in its midst."""
        return IncompleteStream(self.provider, f"The answer of {self.provider} ended too early.")

    def unreadable(self, what: str, said: bytes = b"") -> ProviderProtocolError:
        """Return the error for an answer that is none; `said` is what could not be read."""
        shown = f": {self.said(said[:MAX_TEXT])}" if said else "."
        return ProviderProtocolError(self.provider, f"{self.provider} {what}{shown}")

    def wrong_server(self, what: str) -> ProviderProtocolError:
        """Return the error for what no server of this API would do."""
        return ProviderProtocolError(
            self.provider,
            f"The server at {self._urls} {what}.",
            hint="Do the URLs end where the routes begin, as http://host:8000/v1 does?",
        )

    def _no_route(self, path: str, status: int) -> GatewayError:
        what = _MAY_LACK.get(path)
        if what is None:
            return self.wrong_server(f"has no such route ({status})")
        return UnsupportedCapability(f"{self.provider} has no route for {what}.", param="model")

    def _by_text(self, said: str, body: bytes, ref: ModelRef | None) -> GatewayError | None:
        # Types and codes beside the sentence tell as much; the input, which some echo, may not.
        whole = f"{said} {_find_codes(body)}"
        if _CONTEXT.search(whole):
            return ContextLengthExceeded(f"The prompt is too long for the model: {said}")
        if ref is not None and _NO_MODEL.search(whole):
            return ModelNotFound(
                str(ref), message=f"{self.provider} has no model '{ref.model}': {said}"
            )
        if _UNSUPPORTED.search(whole):
            param = next((param for about, param in _ABOUT if about.search(said)), None)
            return UnsupportedCapability(f"{self.provider} cannot do this: {said}", param=param)
        return None


def _is_no_route(said: str) -> bool:
    return said.strip(" .").lower() in ("", "an html page", *_NO_ROUTE_BODIES)


def _find_text(value: Any, depth: int = 0) -> str | None:
    """Return the sentence in an error body of any shape; a text may again be such a document."""
    if depth > 4:
        return None
    if isinstance(value, str):
        if value[:1] == "{":
            try:
                return _find_text(msgspec.json.decode(value), depth + 1) or value
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                pass
        return value
    if isinstance(value, dict):
        for name in ("error", "message", "detail", "msg"):
            if found := _find_text(value.get(name), depth + 1):
                return _with_place(found, value.get("loc")) if name == "msg" else found
    if isinstance(value, list):
        texts = [_find_text(item, depth + 1) for item in value[:4]]
        return "; ".join(text for text in texts if text) or None
    return None


def _with_place(text: str, place: Any) -> str:
    """Return a sentence of FastAPI with the field that it is about."""
    return f"{'.'.join(map(str, place))}: {text}" if isinstance(place, list) else text


def _find_codes(body: bytes) -> str:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""
    if not isinstance(value, dict):
        return ""
    inner = value.get("error")
    fields = inner if isinstance(inner, dict) else value
    return " ".join(str(fields[name])[:80] for name in ("type", "code") if name in fields)
