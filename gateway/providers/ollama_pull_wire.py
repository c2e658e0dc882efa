"""Pulls: an Ollama server fetches a model for itself and tells how far it is.

Closing the connection stops a pull and keeps what was fetched; the next one goes on there. What
is not whole, Ollama deletes by itself at its next start. Source: server/routes.go and
server/download.go.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import httpx
import msgspec

from gateway.core.downloads import DownloadOrder, DownloadPlan, Fetched, Tally
from gateway.core.errors import (
    GatewayError,
    IncompleteStream,
    ModelNotFound,
    ProviderError,
    ProviderProtocolError,
    ProviderTimeout,
    ProviderUnavailable,
)
from gateway.core.names import ModelRef
from gateway.providers.ollama_fault_wire import (
    PROVIDER,
    describe_status,
    read_error_text,
    unreachable,
)
from gateway.providers.text_wire import clean_text

MAX_LINE_BYTES = 2**20
SILENCE_S = 600.0
"""Between two lines: after the last byte Ollama computes checksums and says nothing meanwhile."""


class _Line(msgspec.Struct):
    status: str = ""
    digest: str = ""
    total: int = 0
    completed: int = 0
    error: str | None = None


_LINES = msgspec.json.Decoder(_Line)


class OllamaPulls:
    """A core.ports.DownloadSource: models of Ollama's registry, into an Ollama server."""

    def __init__(
        self,
        base_url: str,
        *,
        connect_s: float = 2.0,
        silence_s: float = SILENCE_S,
        open_client: Callable[..., httpx.AsyncClient] = httpx.AsyncClient,
    ) -> None:
        self.place = base_url.rstrip("/")
        self._open_client = open_client
        self._timeout = httpx.Timeout(silence_s, connect=connect_s)

    async def plan(self, order: DownloadOrder) -> DownloadPlan:
        """Return that nothing is known: only a pull itself learns what is in a model."""
        return DownloadPlan(order)

    async def fetch(
        self, order: DownloadOrder, tally: Tally, *, commit: str | None, since: float
    ) -> Fetched:
        """Have the model at the Ollama server; raises ModelNotFound and ProviderError."""
        ref = ModelRef(PROVIDER, order.repo)
        layers = _Layers(tally)
        async with aclosing(self._lines(ref)) as lines:
            async for line in lines:
                if line.error is not None:
                    raise _describe_error(line.error, ref)
                if line.status == "success":
                    said = "Ollama has it already." if layers.were_there else "Ollama has it."
                    return Fetched(said, was_there=layers.were_there)
                layers.take(line)
        raise IncompleteStream(PROVIDER, "Ollama broke the pull off.")

    async def discard(self, order: DownloadOrder) -> None:
        """Do nothing: the files are Ollama's."""

    async def _lines(self, ref: ModelRef) -> AsyncGenerator[_Line, None]:
        body = {"model": ref.model, "stream": True}
        try:
            async with (
                self._open_client(timeout=self._timeout, trust_env=False) as client,
                client.stream("POST", f"{self.place}/api/pull", json=body) as reply,
            ):
                if reply.status_code != 200:
                    raise describe_status(reply.status_code, await reply.aread(), ref)
                async for data in _split(reply.aiter_bytes()):
                    yield _decode(data)
        except httpx.ConnectTimeout:
            raise unreachable(self.place) from None
        except httpx.TimeoutException:
            raise ProviderTimeout(PROVIDER, "Ollama was silent for too long.") from None
        except httpx.ConnectError:
            raise unreachable(self.place) from None
        except httpx.RemoteProtocolError as error:
            raise IncompleteStream(PROVIDER, "Ollama broke the pull off.") from error
        except httpx.HTTPError as error:
            raise ProviderUnavailable(PROVIDER, "The connection to Ollama broke.") from error


class _Layers:
    """Adds up the layers of a model, which come one after another."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._layers: dict[str, _Line] = {}
        self._present: dict[str, int] = {}

    @property
    def were_there(self) -> bool:
        return all(self._present[each] >= line.total for each, line in self._layers.items())

    def take(self, line: _Line) -> None:
        if not line.digest or line.total <= 0:
            return
        self._layers[line.digest] = line
        # What is there when a layer is first told of was not fetched now.
        self._present.setdefault(line.digest, line.completed)
        layers = self._layers.values()
        tally = self._tally
        tally.bytes_total = sum(each.total for each in layers)
        tally.bytes_present = sum(self._present.values())
        tally.bytes_fetched = sum(each.completed for each in layers) - tally.bytes_present
        tally.files_total = len(layers)
        tally.files_done = sum(each.completed >= each.total for each in layers)


async def _split(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the lines, the last one also without its end."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise ProviderProtocolError(PROVIDER, "Ollama sent a line without an end.")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


def _decode(data: bytes) -> _Line:
    try:
        return _LINES.decode(data)
    except msgspec.DecodeError as error:
        raise ProviderProtocolError(PROVIDER, "Ollama told of a pull unreadably.") from error


def _describe_error(said: str, ref: ModelRef) -> GatewayError:
    text = clean_text(read_error_text(said.encode("utf-8", "replace")))
    if "file does not exist" in text or "not found" in text:
        return ModelNotFound(
            str(ref),
            message=f"Ollama's registry has no model '{ref.model}'.",
            hint="https://ollama.com/library lists the names.",
        )
    return ProviderError(PROVIDER, f"Ollama could not pull the model: {text}")
