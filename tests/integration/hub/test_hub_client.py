"""Where a Hub token goes, and where it never does: real servers on ports of their own."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from gateway.core.errors import (
    GatedRepository,
    HubOffline,
    HubProtocolError,
    HubRateLimited,
    HubTokenRejected,
    HubUnavailable,
    RepositoryNotFound,
)
from gateway.hub.client import HubClient

TOKEN = "hf_canary0123456789"

Reply = tuple[int, dict[str, str], bytes]


class Host:
    """A server that answers from a table, and notes who came with which token."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.replies: dict[str, Reply | Callable[[], Reply]] = {}
        self.seen: list[tuple[str, str | None]] = []

    def reply(self, path: str, status: int = 200, body: bytes = b"{}", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.replies[path] = (status, named, body)


@contextmanager
def serving() -> Iterator[Host]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            host.seen.append((self.path, self.headers.get("Authorization")))
            found = host.replies.get(self.path.partition("?")[0], (404, {}, b"{}"))
            status, headers, body = found() if callable(found) else found
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(BrokenPipeError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    host = Host(server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield host
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """The Hub, and another host."""
    with ExitStack() as stack:
        yield stack.enter_context(serving()), stack.enter_context(serving())


async def token() -> str | None:
    return TOKEN


@contextmanager
def nobody() -> Iterator[str]:
    """An address where nobody listens."""
    with serving() as host:
        url = host.url
    yield url


async def test_the_token_goes_to_the_hub(hosts: tuple[Host, Host]) -> None:
    hub, _ = hosts
    hub.reply("/api/models", body=b"[1]")
    client = HubClient(hub.url, token)
    assert (await client.get("/api/models")).data == b"[1]"
    assert hub.seen == [("/api/models", f"Bearer {TOKEN}")]
    await client.aclose()


async def test_a_redirect_to_another_port_goes_without_the_token(
    hosts: tuple[Host, Host],
) -> None:
    hub, other = hosts
    hub.reply("/there", 302, Location=f"{other.url}/back")
    other.reply("/back", 302, Location=f"{other.url}/end")
    other.reply("/end", body=b"done")
    client = HubClient(hub.url, token)
    assert (await client.get("/there")).data == b"done"
    assert other.seen == [("/back", None), ("/end", None)]
    await client.aclose()


async def test_a_redirect_at_the_hub_keeps_the_token_and_a_way_back_gets_it_again(
    hosts: tuple[Host, Host],
) -> None:
    hub, other = hosts
    hub.reply("/a", 307, Location="/b")
    hub.reply("/b", 307, Location=f"{other.url}/c")
    other.reply("/c", 307, Location=f"{hub.url}/d")
    hub.reply("/d")
    client = HubClient(hub.url, token)
    await client.get("/a")
    assert [seen for _, seen in hub.seen] == [f"Bearer {TOKEN}"] * 3
    assert other.seen == [("/c", None)]
    await client.aclose()


async def test_a_url_of_another_host_is_asked_without_the_token(hosts: tuple[Host, Host]) -> None:
    hub, other = hosts
    other.reply("/x")
    client = HubClient(hub.url, token)
    await client.get(f"{other.url}/x", token=TOKEN)
    assert other.seen == [("/x", None)]
    await client.aclose()


async def test_a_listing_never_goes_on_at_another_host(hosts: tuple[Host, Host]) -> None:
    hub, other = hosts
    hub.reply("/far", Link=f'<{other.url}/next>; rel="next"')
    hub.reply("/near", Link=f'<{hub.url}/next>; rel="next"')
    client = HubClient(hub.url, token)
    assert (await client.get("/far")).next_url is None
    assert (await client.get("/near")).next_url == f"{hub.url}/next"
    await client.aclose()


async def test_without_a_token_nothing_is_sent(hosts: tuple[Host, Host]) -> None:
    hub, _ = hosts
    hub.reply("/x")

    async def none() -> str | None:
        return None

    client = HubClient(hub.url, none)
    await client.get("/x")
    assert hub.seen == [("/x", None)]
    await client.aclose()


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (403, {"X_Error_Code": "GatedRepo"}, GatedRepository),
        (401, {"X_Error_Code": "GatedRepo"}, GatedRepository),
        (403, {}, GatedRepository),
        (401, {}, RepositoryNotFound),
        (401, {"X_Error_Code": "RepoNotFound"}, RepositoryNotFound),
        (
            401,
            {"X_Error_Message": "Invalid credentials in Authorization header"},
            HubTokenRejected,
        ),
        (404, {"X_Error_Code": "RevisionNotFound"}, RepositoryNotFound),
        (404, {}, RepositoryNotFound),
        (429, {}, HubRateLimited),
        (500, {}, HubUnavailable),
        (503, {}, HubUnavailable),
        (418, {}, HubProtocolError),
    ],
)
async def test_each_refusal_of_the_hub_has_its_error(
    hosts: tuple[Host, Host], status: int, headers: dict[str, str], error: type[Exception]
) -> None:
    hub, _ = hosts
    hub.reply("/api/models/own/name", status, b"[1, 2", **headers)
    client = HubClient(hub.url, token)
    with pytest.raises(error) as caught:
        await client.get("/api/models/own/name")
    assert type(caught.value) is error
    assert TOKEN not in repr(caught.value)
    if error in (GatedRepository, RepositoryNotFound):
        assert "'own/name'" in str(caught.value)
    await client.aclose()


async def test_a_rate_limit_is_waited_out_without_asking(hosts: tuple[Host, Host]) -> None:
    hub, _ = hosts
    now = [100.0]
    hub.reply("/api/models", 429, Retry_After="7")
    hub.reply("/own/name/resolve/main/x")
    client = HubClient(hub.url, token, clock=lambda: now[0])
    for left in (7.0, 4.0):
        with pytest.raises(HubRateLimited) as caught:
            await client.get("/api/models")
        assert caught.value.retry_after_s == left
        now[0] = 103.0
    assert len(hub.seen) == 1
    await client.get("/own/name/resolve/main/x")  # of another limit
    now[0] = 107.5
    hub.reply("/api/models")
    await client.get("/api/models")
    await client.aclose()


async def test_the_last_request_of_a_window_closes_it(hosts: tuple[Host, Host]) -> None:
    hub, _ = hosts
    now = [0.0]
    hub.reply("/api/models", RateLimit='"api";r=0;t=55')
    client = HubClient(hub.url, token, clock=lambda: now[0])
    await client.get("/api/models")
    with pytest.raises(HubRateLimited) as caught:
        await client.get("/api/models")
    assert caught.value.retry_after_s == 55
    await client.aclose()


async def test_a_hub_that_is_away_slow_or_no_hub_is_told_apart(hosts: tuple[Host, Host]) -> None:
    hub, _ = hosts
    with nobody() as url:
        away = HubClient(url, token)
        with pytest.raises(HubUnavailable, match="cannot be reached"):
            await away.get("/api/models")
        await away.aclose()
    release = threading.Event()

    def slow() -> Reply:
        release.wait(20)
        return 200, {}, b"{}"

    hub.replies["/slow"] = slow
    hub.reply("/long", body=b"x" * 3000)
    hub.reply("/round", 302, Location="/round")
    hasty = HubClient(hub.url, token, timeout_s=0.2)
    with pytest.raises(HubUnavailable, match=r"within 0\.2 s"):
        await hasty.get("/slow")
    release.set()
    await hasty.aclose()
    client = HubClient(hub.url, token)
    with pytest.raises(HubProtocolError):
        await client.get("/long", max_bytes=2999)
    with pytest.raises(HubProtocolError):
        await client.get("/round")
    await client.aclose()


async def test_offline_nothing_is_sent(hosts: tuple[Host, Host]) -> None:
    hub, _ = hosts
    client = HubClient(hub.url, token, offline=True)
    with pytest.raises(HubOffline):
        await client.get("/api/models")
    assert hub.seen == []


async def test_a_stream_gives_the_reply_as_it_comes(hosts: tuple[Host, Host]) -> None:
    hub, other = hosts
    hub.reply("/own/name/resolve/main/x", 302, Location=f"{other.url}/y", X_Linked_Etag='"e"')
    client = HubClient(hub.url, token)
    async with client.stream("GET", "/own/name/resolve/main/x", follow=False) as reply:
        assert (reply.status_code, reply.headers["X-Linked-Etag"]) == (302, '"e"')
    async with client.stream("GET", f"{other.url}/y", accept=frozenset({404})) as reply:
        assert reply.status_code == 404
        assert json.loads(await reply.aread()) == {}
    assert isinstance(reply, httpx2.Response)
    assert other.seen == [("/y", None)]
    await client.aclose()


async def test_each_host_has_limits_of_its_own(hosts: tuple[Host, Host]) -> None:
    hub, other = hosts
    other.reply("/blob", 429, Retry_After="60")
    hub.reply("/api/models/a/b")
    hub.reply("/a/b/resolve/main/x", 302, Location=f"{other.url}/blob")
    client = HubClient(hub.url, token)
    try:
        with pytest.raises(HubRateLimited):
            await client.get("/a/b/resolve/main/x")
        await client.get("/api/models/a/b")
        hub.reply("/api/models/a/b", 429, Retry_After="60")
        with pytest.raises(HubRateLimited):
            await client.get("/api/models/a/b")
        other.reply("/file", 200)
        async with client.stream("GET", "/a/b/resolve/main/x", follow=False) as reply:
            assert reply.status_code == 302
        with pytest.raises(HubRateLimited):
            await client.get(f"{other.url}/file")
    finally:
        await client.aclose()
