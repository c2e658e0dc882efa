"""The one place that talks to the Hub with a token: where the token may go, time, size and rate.

Knows HTTP and the Hub's errors; what the answers mean is for its neighbours. Why it is not
huggingface_hub's own client is told in ADR 18.
"""

import platform
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from time import monotonic, time
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx2
import msgspec

from gateway import __version__
from gateway.core.errors import HubOffline, HubProtocolError, HubUnavailable
from gateway.hub.faults import raise_for_status
from gateway.hub.rate import RateGate, kind_of

TokenLookup: TypeAlias = Callable[[], Awaitable[str | None]]
"""Gives the token to use now; None is to ask anonymously."""

MAX_REPLY_BYTES = 32 * 2**20
CONNECT_S = 5.0
_TOKEN = "hub_token"


class HubReply(msgspec.Struct, frozen=True):
    """An answer of the Hub's API; `next_url` is where the listing goes on, always at the Hub."""

    data: bytes
    next_url: str | None = None


class HubClient:
    """Asks one Hub. The token goes to the endpoint's own scheme, host and port, and nowhere else:
    it is taken off each request, redirected ones too, that leads elsewhere.

    Raises HubError, and what looking up the token raises: DatabaseUnavailable, SecretUnreadable.
    Safe for many tasks of one event loop.
    """

    def __init__(
        self,
        endpoint: str,
        token: TokenLookup,
        *,
        offline: bool = False,
        timeout_s: float = 10.0,
        clock: Callable[[], float] = monotonic,
        now: Callable[[], float] = time,
    ) -> None:
        """`endpoint` is the base URL; `offline` refuses before anything is sent. `clock` is
        monotonic seconds, `now` Unix seconds."""
        self.endpoint = endpoint.rstrip("/")
        self.offline = offline
        self.token = token
        self._timeout_s = timeout_s
        self._gate = RateGate(clock, now)
        self._lock = anyio.Lock()
        self._session: httpx2.AsyncClient | None = None

    async def get(
        self,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        token: str | None = None,
        max_bytes: int = MAX_REPLY_BYTES,
    ) -> HubReply:
        """Return what the Hub answers at `path`, or at a URL that it gave as `next_url`.

        `token` stands in for the looked up one. Bounded in time and size.
        """
        try:
            with anyio.fail_after(self._timeout_s):
                async with self.stream("GET", path, params=params, token=token) as reply:
                    return HubReply(await _read(reply, max_bytes), self._next_url(reply))
        except TimeoutError as error:
            raise self._too_slow() from error

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        follow: bool = True,
        token: str | None = None,
        accept: frozenset[int] = frozenset(),
    ) -> AsyncIterator[httpx2.Response]:
        """Send a request and give the reply with its body unread; `path` may be a URL.

        `follow` follows redirects, to any host but without the token; else a redirect is the
        reply. A status that is an error is raised, unless it is in `accept`. The time from byte to
        byte is bounded, the whole is not.
        """
        self._require_online()
        url = path if path.startswith(("http://", "https://")) else self.endpoint + path
        self._gate.require(kind_of(url))
        credential = token or await self.token()
        with self._translated():
            session = await self._open()
            async with session.stream(
                method,
                url,
                params=params,
                headers=headers,
                follow_redirects=follow,
                extensions={_TOKEN: credential},
            ) as reply:
                # Of the host that answered, which a redirect may have led to.
                self._gate.learn(kind_of(str(reply.url)), reply.status_code, reply.headers)
                if reply.status_code not in accept:
                    raise_for_status(reply, urlsplit(url).path, had_token=bool(credential))
                yield reply

    async def aclose(self) -> None:
        """Close the connections. Harmless when there are none."""
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()

    async def _open(self) -> httpx2.AsyncClient:
        async with self._lock:
            if self._session is None:
                # In a thread: it reads all certificates of the machine.
                self._session = await anyio.to_thread.run_sync(self._build)
        return self._session

    def _build(self) -> httpx2.AsyncClient:
        guard = partial(_authorize, origin_of(self.endpoint))

        async def authorize(request: httpx2.Request) -> None:
            guard(request)

        return httpx2.AsyncClient(event_hooks={"request": [authorize]}, **self._options())

    def _options(self) -> dict[str, Any]:
        timeout = httpx2.Timeout(self._timeout_s, connect=min(CONNECT_S, self._timeout_s))
        return {"headers": {"User-Agent": _user_agent()}, "timeout": timeout}

    def _require_online(self) -> None:
        if self.offline:
            raise HubOffline("The gateway is told never to ask the Hub.")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx2.TimeoutException as error:
            raise self._too_slow() from error
        except (httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError) as error:
            raise HubUnavailable(f"The Hub at {self.endpoint} cannot be reached.") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise HubProtocolError(f"{self.endpoint} does not answer as the Hub does.") from error

    def _too_slow(self) -> HubUnavailable:
        return HubUnavailable(
            f"The Hub at {self.endpoint} did not answer within {self._timeout_s:g} s."
        )

    def _next_url(self, reply: httpx2.Response) -> str | None:
        """Return the next page's URL; one at another host is not followed."""
        url = reply.links.get("next", {}).get("url")
        return url if url and origin_of(url) == origin_of(self.endpoint) else None


def origin_of(url: str) -> tuple[str, str, int | None]:
    """Return (scheme, host, port) of a URL, the port also where it is the scheme's own."""
    parts = httpx2.URL(url)
    return parts.scheme, parts.host, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _authorize(origin: tuple[str, str, int | None], request: httpx2.Request) -> None:
    """Give the request its token if it goes to `origin`, else see to it that it has none.

    Called for each request of a chain of redirects.
    """
    request.headers.pop("Authorization", None)
    token = request.extensions.get(_TOKEN)
    if token and origin_of(str(request.url)) == origin:
        request.headers["Authorization"] = f"Bearer {token}"


def _user_agent() -> str:
    python = platform.python_version()
    return f"model-gateway/{__version__}; hf_hub/{version('huggingface_hub')}; python/{python}"


async def _read(reply: httpx2.Response, max_bytes: int) -> bytes:
    chunks, size = [], 0
    async for chunk in reply.aiter_bytes():
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise HubProtocolError("The Hub's answer is too long to be one.")
    return b"".join(chunks)
