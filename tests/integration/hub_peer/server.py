"""The peer's two servers: the Hub, and the host that it redirects to for the bytes of LFS files.

By hand: `python -m tests.integration.hub_peer.server` serves `org/demo` until it is stopped.
"""

import asyncio
import contextlib
import re
import sys
from functools import partial
from types import TracebackType
from typing import Self

from tests.integration.hub_peer.api import Api, answer_api
from tests.integration.hub_peer.files import Files, HubFile, HubRepo, refuse
from tests.integration.hub_peer.wire import Exchange, Headers, Seen
from tests.integration.peer_connection import PeerConnection

_RESOLVE = re.compile(r"resolve/([^/]+)/(.+)", re.DOTALL)
_CACHED = "/api/resolve-cache/models/"


class HubPeer:
    """The Hub. Everything it saw is in `requests`, oldest first.

    `tokens` maps each valid token to its user; a gated repository lets in whom it `granted`.
    """

    def __init__(self) -> None:
        self.files = Files()
        self.api = Api()
        self.tokens: dict[str, str] = {}
        self.requests: list[Seen] = []
        self._api_plans: list[tuple[str, int, Headers]] = []
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Condition()
        self._ports = {"hub": 0, "cdn": 0}

    @property
    def url(self) -> str:
        """The endpoint, as HF_ENDPOINT names it."""
        return f"http://127.0.0.1:{self._ports['hub']}"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for host, port in self._ports.items():
            connect = partial(PeerConnection, partial(self.accept, host))
            server = await loop.create_server(connect, "127.0.0.1", port)
            self._servers.append(server)
            self._ports[host] = server.sockets[0].getsockname()[1]
        self.files.cdn_url = f"http://127.0.0.1:{self._ports['cdn']}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def restart(self) -> None:
        """Listen again on the ports of before, after `stop`."""
        await self.__aenter__()

    def fail_api(self, path: str, status: int, headers: Headers = (), times: int = 1) -> None:
        """Answer the next requests to the Hub whose path begins with `path` by `status`."""
        self._api_plans.extend([(path, status, headers)] * times)

    def seen(self, host: str | None = None, method: str = "GET", path: str = "") -> list[Seen]:
        """Return the requests that fit; `path` is a part of theirs."""
        return [
            seen
            for seen in self.requests
            if host in (None, seen.host) and seen.method == method and path in seen.path
        ]

    async def request(self, path: str, index: int = 0, host: str | None = None) -> Seen:
        """Return the GET of that index whose path contains `path`, waiting until it arrived."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.seen(host, path=path)) > index)
        return self.seen(host, path=path)[index]

    def find_repo(self, path: str) -> tuple[HubRepo, str] | None:
        """Return the repository whose id begins the path, and what follows it."""
        for repo in self.files.repos.values():
            if path == repo.id or path.startswith(f"{repo.id}/"):
                return repo, path[len(repo.id) + 1 :]
        return None

    async def admits(self, exchange: Exchange, repo: HubRepo) -> bool:
        """Tell whether the token may see the repository; if not, refuse as the Hub does."""
        token = exchange.seen.token
        if token is not None and token not in self.tokens:
            await refuse(
                exchange, 401, "", "Invalid credentials in Authorization header"
            )  # the Hub names no code here
            return False
        if repo.private and token not in repo.granted:
            await self.refuse_unknown(exchange)
            return False
        is_content = not exchange.seen.path.startswith("/api/models/")
        if repo.gated and is_content and token not in repo.granted:
            about = f"Access to model {repo.id} is restricted."
            await refuse(exchange, 401 if token is None else 403, "GatedRepo", about)
            return False
        return True

    async def refuse_unknown(self, exchange: Exchange) -> None:
        """Answer that there is no such repository: to strangers as if they just may not see it."""
        status = 401 if exchange.seen.token is None else 404
        await refuse(exchange, status, "RepoNotFound", "Repository not found")

    async def accept(
        self,
        host: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Serve one connection until either side closes it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        protocol = writer.transport.get_protocol()
        assert isinstance(protocol, PeerConnection)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._serve_one(host, protocol.gone, reader, writer):
                    pass
        except asyncio.CancelledError:
            # asyncio's stream callback logs a cancelled task; stopping is the end it waits for.
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._tasks.discard(task)

    async def _serve_one(
        self,
        host: str,
        gone: asyncio.Event,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        start, *lines = head.rstrip().split("\r\n")
        method, target, _ = start.split(" ")
        pairs = (text.split(":", 1) for text in lines)
        headers = {key.strip().lower(): value.strip() for key, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        seen = Seen(host, method, target, headers, body)
        self.requests.append(seen)
        async with self._arrived:
            self._arrived.notify_all()
        exchange = Exchange(seen, writer)
        answering = asyncio.ensure_future(self._dispatch(exchange))
        leaving = asyncio.ensure_future(gone.wait())
        try:
            await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                seen.closed.set()
                return False
            answering.result()
            seen.answered.set()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
        return exchange.open

    async def _dispatch(self, exchange: Exchange) -> None:
        if exchange.seen.host == "cdn":
            return await self.files.serve_signed(exchange)
        path = exchange.seen.path
        for plan in self._api_plans:
            if path.startswith(plan[0]):
                self._api_plans.remove(plan)
                return await exchange.reply(plan[1], b"not now", plan[2])
        if path.startswith("/api/") and not path.startswith(_CACHED):
            return await answer_api(self, exchange)
        found = self.find_repo(path.removeprefix(_CACHED).removeprefix("/"))
        if found is None:
            return await self.refuse_unknown(exchange)
        repo, rest = found
        if not await self.admits(exchange, repo):
            return None
        if path.startswith(_CACHED):
            return await self.files.serve_cached(exchange, repo, rest)
        asked = _RESOLVE.fullmatch(rest)
        if asked is None:
            return await exchange.reply(404, b"Not found")
        await self.files.resolve(exchange, repo, asked[1], asked[2])


async def _serve() -> None:
    async with HubPeer() as peer:
        peer.files.add("org/demo", HubFile("config.json", b"{}", lfs=False))
        sys.stdout.write(f"HF_ENDPOINT={peer.url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve())
