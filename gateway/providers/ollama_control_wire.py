"""Ollama's control plane over the `ollama` package: version, tags, ps, show; nothing streams here.

Every call is bounded in time and bytes and raises only our own errors.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

import anyio
import httpx
import msgspec
import ollama
import pydantic

from gateway.core.errors import GatewayError, ProviderProtocolError, ProviderTimeout
from gateway.core.names import ModelRef
from gateway.providers.ollama_fault_wire import (
    PROVIDER,
    describe_status,
    encoded_answer,
    unreachable,
)
from gateway.providers.ollama_listing_wire import (
    Running,
    ServerVersion,
    Tag,
    Tags,
    Traits,
    read_traits,
)

_T = TypeVar("_T")

_MAX_BYTES = 64 * 1024 * 1024  # a thousand models list in less than 1 MB


class ControlPlane:
    """Asks one Ollama server what it has; each call ends within `timeout_s`."""

    def __init__(self, base_url: str, timeout_s: float) -> None:
        self._base_url = base_url
        self._timeout_s = timeout_s
        self._client = _Client(base_url, timeout_s)

    async def version(self) -> str:
        return (await self._ask(self._client.version)).version

    async def running(self) -> Sequence[Running]:
        """Return the models in memory."""
        return (await self._ask(self._client.ps)).models

    async def traits(self, model: str, ref: ModelRef | None = None) -> Traits:
        """Return what a look at one model tells; `ref` is who is not found if it is not there."""
        return read_traits(await self._ask(lambda: self._client.show(model), ref))

    async def delete(self, ref: ModelRef) -> None:
        """Remove a model's files; raises ModelNotFound."""
        await self._ask(lambda: self._client.delete(ref.model), ref)

    async def tags_and_running(self) -> tuple[Sequence[Tag], Sequence[Running]]:
        """Return the installed models and those in memory, asked for at once."""
        tags: list[Tags] = []
        running: list[Sequence[Running]] = []
        errors: list[GatewayError] = []

        async with anyio.create_task_group() as tasks:

            async def attempt(list_models: Callable[[], Awaitable[None]]) -> None:
                # Caught here, because a task group would make a group of the one error.
                try:
                    await list_models()
                except GatewayError as error:
                    errors.append(error)
                    tasks.cancel_scope.cancel()

            async def list_tags() -> None:
                tags.append(await self._ask(self._client.tags))

            async def list_running() -> None:
                running.append(await self.running())

            tasks.start_soon(attempt, list_tags)
            tasks.start_soon(attempt, list_running)
        if errors:
            raise errors[0]
        return tags[0].models or (), running[0]

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _ask(self, call: Callable[[], Awaitable[_T]], ref: ModelRef | None = None) -> _T:
        """Await a call of the control client; raises only our own errors, in bounded time."""
        try:
            with anyio.fail_after(self._timeout_s):
                return await call()
        except (TimeoutError, httpx.TimeoutException) as error:
            raise ProviderTimeout(
                PROVIDER,
                f"Ollama at {self._base_url} did not answer within {self._timeout_s:g} s.",
            ) from error
        except ollama.ResponseError as error:
            # The package took the text out of Ollama's JSON; a wrong server's page is no JSON.
            text = str(error.error)
            is_ollamas = text.startswith("model ")
            said = msgspec.json.encode({"error": text}) if is_ollamas else text.encode()
            raise describe_status(error.status_code, said, ref) from error
        except (ConnectionError, httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise unreachable(self._base_url) from error
        # The package hands any JSON to pydantic by keyword: a list or a number fails as it may.
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            pydantic.ValidationError,
            ValueError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise ProviderProtocolError(
                PROVIDER, f"{self._base_url} does not answer as Ollama does."
            ) from error


class _Client(ollama.AsyncClient):
    """The package's client with the route and the fields that it lacks, and with bounds."""

    def __init__(self, base_url: str, timeout_s: float) -> None:
        super().__init__(
            base_url,
            follow_redirects=False,
            trust_env=False,
            # No redirect is followed: without TLS to begin with there never is any. To load the
            # certificates takes the event loop 50 ms.
            verify=urlsplit(base_url).scheme == "https",
            timeout=timeout_s,
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [_bound_answer]},
        )
        # The package adds OLLAMA_API_KEY from the environment; only the settings may read that.
        self._client.headers.pop("authorization", None)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def tags(self) -> Tags:
        return await self._request(Tags, "GET", "/api/tags")

    async def version(self) -> ServerVersion:
        return await self._request(ServerVersion, "GET", "/api/version")


async def _bound_answer(response: httpx.Response) -> None:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise encoded_answer()
    if isinstance(response.stream, httpx.AsyncByteStream):
        response.stream = _BoundedBody(response.stream)


class _BoundedBody(httpx.AsyncByteStream):
    """A body that ends in an error once it is longer than any listing can be."""

    def __init__(self, body: httpx.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._body:
            size += len(chunk)
            if size > _MAX_BYTES:
                raise ProviderProtocolError(PROVIDER, "Ollama's listing is too long to be one.")
            yield chunk

    async def aclose(self) -> None:
        await self._body.aclose()
