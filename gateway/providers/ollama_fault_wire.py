"""What Ollama's failures mean: statuses, error texts and broken connections to our errors. Pure.

Ollama sends no machine-readable code, so a failure is classified by its status, then by its text.
Source: Ollama's server/routes.go, server/sched.go and llm/llama_server.go.
"""

import re
from typing import Any

import msgspec

from gateway.core.errors import (
    ContextLengthExceeded,
    EngineFailed,
    GatewayError,
    IncompleteStream,
    InvalidRequest,
    ModelLoadFailed,
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
from gateway.providers.text_wire import clean_text, read_retry_after

PROVIDER = "ollama"

_CONTEXT_TEXTS = (
    "longer than the context length",
    "exceeds the context length",
    "exceeds the available context size",
    "exceed_context_size",
)
_LOAD_TEXTS = (
    "llama-server process has terminated",
    "out-of-memory",
    "out of memory",
    "timed out waiting for llama-server",
    "may be incompatible with your version",
    "unable to load full model",
    "requires more system memory",
)
_UNSUPPORTED = re.compile(r"does not support (\w+)")
_PARAMS = {
    "tools": "tools",
    "thinking": "think",
    "vision": "messages",
    "images": "messages",
    "insert": "suffix",
}


def read_error_text(body: bytes) -> str:
    """Return the text of an error body, cleaned and cut to MAX_TEXT; may be empty.

    The body is {"error": text}, plain text, or nothing; the text may again be such a document,
    because Ollama passes the bodies of its runner through.
    """
    text = body.decode("utf-8", "replace")
    for _ in range(4):
        inner = _inner_text(_parse(text))
        if inner is None:
            break
        text = inner
    return clean_text(text)


def describe_status(
    status: int, body: bytes, ref: ModelRef | None, retry_after: str | None = None
) -> GatewayError:
    """Return the error that an answer with `status` (not 200) and `body` means."""
    said = read_error_text(body)
    by_text = _describe_text(said, body, ref)
    if by_text is not None and status in (400, 500):
        return by_text
    quoted = f": {said}" if said else "."
    match status:
        case 404 if ref is not None and isinstance(_parse(body.decode("utf-8", "replace")), dict):
            return ModelNotFound(str(ref), message=f"Ollama has no model '{ref.model}'.")
        case 401 | 403:
            return _refused(status, quoted)
        case 400 if "invalid model name" in said:
            return InvalidRequest(f"Ollama refused the model's name{quoted}", param="model")
        case 413:
            return PayloadTooLarge(f"The request is larger than Ollama takes{quoted}")
        case 429 | 503:
            return Overloaded(
                f"Ollama is busy{quoted}", retry_after_s=read_retry_after(retry_after)
            )
        case 499:
            return ProviderUnavailable(PROVIDER, f"Ollama gave the request up{quoted}")
        case 502:
            return ProviderUnavailable(PROVIDER, f"Nothing answers behind Ollama's address{quoted}")
        case 408 | 504:
            return ProviderTimeout(PROVIDER, f"Ollama took too long{quoted}")
        case 404 | 405:
            return _wrong_server(f"answered {status} to a route that Ollama has{quoted}")
        case _ if 300 <= status < 400:
            return _wrong_server(f"answered a redirect ({status}), which is never followed")
        case _ if 400 <= status < 500:
            return ProviderRejected(PROVIDER, f"Ollama refused the request ({status}){quoted}")
        case _ if status >= 500:
            return EngineFailed(f"Ollama failed before it answered ({status}){quoted}")
    return _wrong_server(f"answered with status {status}")


def describe_error_line(error: bytes, ref: ModelRef) -> GatewayError:
    """Return what an {"error": ...} line inside a stream means; `error` is the JSON value."""
    said = read_error_text(error)
    by_text = _describe_text(said, error, ref)
    return by_text or ProviderError(PROVIDER, f"Ollama failed while it generated: {said}")


def describe_transport(error: TransportError, base_url: str, started: bool) -> GatewayError:
    """Return what a failed exchange means; `started` tells whether an answer had begun."""
    match error:
        case ConnectTimedOut():
            return ProviderTimeout(
                PROVIDER, f"Ollama at {base_url} did not accept a connection in time."
            )
        case Unreachable():
            return unreachable(base_url)
        case StillBusy():
            return Overloaded(f"Ollama is still at {error} requests, of some nobody waits for.")
        case ReplyTimedOut():
            return ProviderTimeout(PROVIDER, "Ollama was silent for too long.")
        case ConnectionLost() if started:
            return IncompleteStream(PROVIDER, "The connection to Ollama broke during the answer.")
        case ConnectionLost():
            return ProviderUnavailable(PROVIDER, "Ollama closed the connection without an answer.")
    return _wrong_server(f"does not speak HTTP as Ollama does: {error}")


def unreachable(base_url: str) -> ProviderUnavailable:
    """Return the error for an address where nobody listens."""
    return ProviderUnavailable(
        PROVIDER,
        f"Ollama at {base_url} cannot be reached.",
        hint="Is it running (`ollama serve`), and is OLLAMA_HOST right?",
    )


def encoded_answer() -> ProviderProtocolError:
    """Return the error for a compressed answer: none was asked for, and inflating is a risk."""
    return _wrong_server("compressed its answer although that was not asked for")


def _describe_text(said: str, body: bytes, ref: ModelRef | None) -> GatewayError | None:
    # The whole body is searched too: the telling word may be a field beside the sentence.
    whole = said.lower() + body.decode("utf-8", "replace").lower()
    if any(text in whole for text in _CONTEXT_TEXTS):
        return ContextLengthExceeded(f"The prompt is too long for the model: {said}")
    if unsupported := _UNSUPPORTED.search(said):
        what = unsupported[1]
        name = str(ref) if ref else "The model"
        return UnsupportedCapability(
            f"{name} does not support {what}.", param=_PARAMS.get(what, "model")
        )
    if "invalid format" in said.lower():
        return InvalidRequest(f"Ollama refused the format: {said}", param="response_format")
    if any(text in whole for text in _LOAD_TEXTS):
        return ModelLoadFailed(
            f"Ollama could not load the model: {said}",
            hint="Look at Ollama's log, and at the memory that is free.",
        )
    return None


def _refused(status: int, quoted: str) -> ProviderRejected:
    # Ollama checks the Host header only when it is bound to loopback: a bare 403, nothing said.
    hint = (
        "Sign in on the machine that runs Ollama (`ollama signin`)."
        if status == 401
        else "Address Ollama by an IP address or localhost, or let it listen on 0.0.0.0."
    )
    return ProviderRejected(PROVIDER, f"Ollama refused access ({status}){quoted}", hint=hint)


def _wrong_server(what: str) -> ProviderProtocolError:
    return ProviderProtocolError(
        PROVIDER,
        f"The server at Ollama's address {what}".rstrip(".") + ".",
        hint="Does OLLAMA_HOST point at an Ollama server?",
    )


def _parse(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _inner_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        inner = value.get("error", value.get("message"))
        return _inner_text(inner)
    return None
