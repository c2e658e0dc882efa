"""Serves scripts over HTTP/1.1 on loopback, and records what it saw."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from tests.integration.ollama_peer.exchange import Exchange, Seen
from tests.integration.ollama_peer.scripts import Script
from tests.integration.peer_connection import PeerConnection


class PeerServer:
    """Answers each request by the script of its path, or as `_dispatch` does.

    Everything it saw is in `requests`, oldest first.
    """

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Seen] = []
        self.connections = 0
        self._port = port
        self._routes: dict[str, Script] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: PeerConnection(self._accept), "127.0.0.1", self._port, backlog=2048
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

    def seen(self, path: str) -> list[Seen]:
        return [seen for seen in self.requests if seen.path == path]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        protocol = writer.transport.get_protocol()
        assert isinstance(protocol, PeerConnection)
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
            await self._routes.get(path, self._dispatch)(exchange)
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
        """Answer what has no script."""
        raise NotImplementedError
