"""A proxy as one would write it in an hour, on the frameworks that ours is made of: bytes in, bytes
out, and nothing else. What it takes is what these frameworks take on this machine.

    python -m bench.plain_proxy UPSTREAM PORT
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


class PlainProxy:
    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._client: aiohttp.ClientSession

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            connector=connector, auto_decompress=False
        ) as self._client:
            yield

    async def chat(self, request: Request) -> Response:
        reply = await self._client.post(
            self._upstream + request.url.path,
            data=await request.body(),
            headers={"content-type": "application/json"},
        )
        kind = reply.headers["content-type"]
        if "content-length" in reply.headers:
            return Response(await reply.read(), reply.status, media_type=kind)
        return StreamingResponse(_pass_on(reply), reply.status, media_type=kind)


async def _pass_on(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in reply.content.iter_any():
            yield chunk
    finally:
        reply.close()


async def _ready(_request: Request) -> Response:
    return Response(status_code=204)


def main() -> None:
    upstream, port = sys.argv[1:3]
    proxy = PlainProxy(upstream)
    routes = [
        Route("/v1/chat/completions", proxy.chat, methods=["POST"]),
        Route("/ready", _ready),
    ]
    app = Starlette(routes=routes, lifespan=proxy.lifespan)
    uvicorn.run(app, port=int(port), access_log=False, log_level="error")


if __name__ == "__main__":
    main()
