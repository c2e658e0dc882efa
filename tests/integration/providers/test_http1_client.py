"""The client of Ollama's streams against raw sockets: connections, deadlines and back-pressure."""

import asyncio
import datetime
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway import telemetry
from gateway.core.telling import Wait
from gateway.core.turns import TURN_BYTES
from gateway.providers.http1 import Http1Client, Reply
from gateway.providers.http1_connection_wire import MAX_HELD_BYTES
from gateway.providers.http1_wire import (
    ConnectionLost,
    MalformedReply,
    ReplyTimedOut,
    TransportError,
    Unreachable,
)

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both kinds of transports: they differ in when they tell what."""
    return "asyncio", {"use_uvloop": request.param}


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Runs `serve` for every connection, then closes it; `heads` are those of all requests."""

    def __init__(self, serve: Serve) -> None:
        self.heads: list[bytes] = []
        self.connections = 0
        self.sent = 0
        self.gone = anyio.Event()
        self._serve = serve

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._serve(reader, writer)
        writer.close()

    async def see_it_go(self, reader: asyncio.StreamReader) -> None:
        """Wait until the client let go of the connection."""
        with suppress(ConnectionError):
            assert await reader.read(1) == b""
        self.gone.set()

    async def take(self, reader: asyncio.StreamReader) -> bytes:
        """Return the body of the next request."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return await reader.readexactly(length)


@asynccontextmanager
async def serving(
    make: Callable[[Server], Serve], tls: ssl.SSLContext | None = None, path: str = ""
) -> AsyncIterator[tuple[Server, Http1Client]]:
    """A server of what `make` returns, and a client for it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await make(server)(reader, writer)

    server = Server(serve)
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    scheme = "http" if tls is None else "https"
    client = Http1Client(f"{scheme}://127.0.0.1:{port}{path}", {"X-Ours": "yes"}, connect_s=5.0)
    try:
        with anyio.fail_after(60):
            yield server, client
    finally:
        await client.aclose()
        listener.close()
        await listener.wait_closed()


def answering(*answers: bytes) -> Callable[[Server], Serve]:
    """Answer the requests of each connection in turn, then close it."""

    def make(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for answer in answers:
                await server.take(reader)
                writer.write(answer)

        return serve

    return make


def answering_once(answer: bytes) -> Callable[[Server], Serve]:
    """Answer every request by `answer`, and see the client close its connection after each."""

    def make(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.take(reader)
            writer.write(answer)
            await server.see_it_go(reader)

        return serve

    return make


async def read_all(reply: Reply) -> bytes:
    body = b""
    try:
        while piece := await reply.read():
            body += piece
    finally:
        reply.close()
    return body


async def test_a_request_says_what_it_must_and_no_more() -> None:
    async with serving(answering(WHOLE), path="/behind/proxy") as (server, client):
        assert await read_all(await client.post("/api/chat", b"{}", 5.0)) == b"ok"
    lines = server.heads[0].decode().split("\r\n")
    assert lines[0] == "POST /behind/proxy/api/chat HTTP/1.1"
    assert lines[1].startswith("Host: 127.0.0.1:")
    assert lines[2:] == ["X-Ours: yes", "Content-Length: 2", "", ""]


@pytest.mark.parametrize(
    "url, host",
    [
        ("http://ollama", "ollama"),
        ("http://ollama:80", "ollama"),
        ("https://ollama:443/x", "ollama"),
        ("https://ollama:80", "ollama:80"),
        ("http://[::1]:11434", "[::1]:11434"),
        ("http://bücher:1", "xn--bcher-kva:1"),
        ("http://a..b:1", "a..b:1"),
    ],
)
async def test_the_host_is_named_as_http_wants_it(url: str, host: str) -> None:
    client = Http1Client(url, {}, connect_s=1.0)
    assert client.fields.decode() == f"Host: {host}\r\n"


async def test_a_name_that_cannot_be_one_is_unreachable() -> None:
    client = Http1Client("http://a..b:1", {}, connect_s=1.0)
    with pytest.raises(Unreachable):
        await client.post("/", b"", 1.0)


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with serving(answering(WHOLE, WHOLE, WHOLE)) as (server, client):
        for _ in range(3):
            assert await read_all(await client.post("/", b"x" * 100_000, 5.0)) == b"ok"
    assert server.connections == 1


async def test_what_a_connection_tells_is_told_in_no_request_s_context() -> None:
    asking = telemetry.request_id.get()
    heard: list[str] = []
    async with serving(answering(WHOLE, WHOLE)) as (_, client):
        for request in ("the first", "the second"):
            telemetry.request_id.set(request)
            reply, told = await client.ask("/", b"", 5.0), anyio.Event()

            def hear(told: anyio.Event = told) -> None:
                heard.append(telemetry.request_id.get())
                told.set()

            reply.listen(hear)
            await told.wait()
            reply.close()
    assert heard == [asking, asking]


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE + b"HTTP/1.1 200 OK\r\n",
        WHOLE.replace(b"1.1", b"1.0"),
        WHOLE.replace(b"Content", b"Connection: close\r\nContent"),
    ],
    ids=["more than was asked for", "an old server", "a server that closes"],
)
async def test_a_connection_that_may_not_serve_again_does_not(answer: bytes) -> None:
    async with serving(answering_once(answer)) as (server, client):
        for _ in range(2):
            assert await read_all(await client.post("/", b"", 5.0)) == b"ok"
    assert server.connections == 2


def closing_when_asked_again(server: Server) -> Serve:
    """Answer one request of each connection; close without a word on the next."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.take(reader)
        writer.write(WHOLE)
        await server.take(reader)

    return serve


async def test_a_kept_connection_that_was_closed_is_asked_once_more_on_a_new_one() -> None:
    async with serving(closing_when_asked_again) as (server, client):
        for _ in range(3):
            assert await read_all(await client.post("/", b"", 5.0)) == b"ok"
    assert (server.connections, len(server.heads)) == (3, 5)


async def test_a_new_connection_that_is_closed_is_not_asked_again() -> None:
    def make(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.take(reader)

        return serve

    async with serving(make) as (server, client):
        with pytest.raises(ConnectionLost) as lost:
            await client.post("/", b"", 5.0)
        assert not lost.value.has_begun
    assert len(server.heads) == 1


async def test_after_the_first_byte_of_a_reply_nothing_is_asked_again() -> None:
    async with serving(answering(WHOLE, b"H")) as (server, client):
        await read_all(await client.post("/", b"", 5.0))
        with pytest.raises(ConnectionLost) as lost:
            await client.post("/", b"", 5.0)
        assert lost.value.has_begun
    assert len(server.heads) == 2


async def test_a_server_that_speaks_unasked_is_not_asked_again() -> None:
    spoken = asyncio.Event()

    def make(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.take(reader)
            writer.write(WHOLE)
            if server.connections == 1:
                await spoken.wait()
                writer.write(WHOLE)
                await server.see_it_go(reader)

        return serve

    async with serving(make) as (server, client):
        assert await read_all(await client.post("/", b"", 5.0)) == b"ok"
        spoken.set()
        await server.gone.wait()
        assert await read_all(await client.post("/", b"", 5.0)) == b"ok"
    assert server.connections == 2


async def test_what_came_before_a_failure_is_read_before_it() -> None:
    async with serving(answering(CHUNKED + b"2\r\nok\r\nrubbish\r\n")) as (_, client):
        reply = await client.post("/", b"", 5.0)
        assert await reply.read() == b"ok"
        for _ in range(2):
            with pytest.raises(MalformedReply):
                await reply.read()
        reply.close()


def flooding(server: Server) -> Serve:
    """Send 64 MiB in chunks as fast as they are taken."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.take(reader)
        writer.write(CHUNKED)
        for _ in range(1024):
            writer.write(b"10000\r\n%b\r\n" % (b"x" * 0x10000))
            server.sent += 0x10000
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    return serve


async def until_held_back(server: Server) -> None:
    """Wait until nothing moves any more, whatever the kernel's buffers hold."""
    sent, stalls = -1, 0
    while stalls < 10:
        stalls = stalls + 1 if server.sent == sent else 0
        sent = server.sent
        await anyio.sleep(0.02)
    assert sent < 32 * 2**20


async def test_who_does_not_read_holds_the_server_back() -> None:
    async with serving(flooding) as (server, client):
        reply = await client.post("/", b"", 60.0)
        await anyio.wait_all_tasks_blocked()
        await until_held_back(server)
        first = await reply.read()
        assert len(first) <= MAX_HELD_BYTES + 2**18
        assert len(first) + len(await read_all(reply)) == 2**26


async def test_a_silence_ends_the_reply_and_its_connection() -> None:
    def make(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.take(reader)
            writer.write(CHUNKED)
            await server.see_it_go(reader)

        return serve

    async with serving(make) as (server, client):
        reply = await client.post("/", b"", 300.0)
        reply.expect_within(0.02)
        with pytest.raises(ReplyTimedOut):
            await reply.read()
        await server.gone.wait()
        reply.close()


async def test_a_deadline_can_be_put_off_as_often_as_there_is_progress() -> None:
    steps = [asyncio.Event() for _ in range(6)]

    def make(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.take(reader)
            writer.write(CHUNKED)
            for step in steps:
                await step.wait()
                writer.write(b"1\r\nx\r\n")
            writer.write(b"0\r\n\r\n")

        return serve

    async with serving(make) as (_, client):
        reply = await client.post("/", b"", 0.6)
        for step in steps:
            asyncio.get_running_loop().call_later(0.4, step.set)
            reply.expect_within(0.6)
            assert await reply.read() == b"x"
        assert await read_all(reply) == b""


@pytest.mark.parametrize("phase", ["before the head", "in the body"])
async def test_closing_and_cancelling_close_the_socket_at_once(phase: str) -> None:
    asked = asyncio.Event()

    def make(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.take(reader)
            if phase == "in the body":
                writer.write(CHUNKED)
            asked.set()
            await server.see_it_go(reader)

        return serve

    async with serving(make) as (server, client):
        if phase == "in the body":
            (await client.post("/", b"", 5.0)).close()
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.post, "/", b"", 5.0)
                await asked.wait()
                tasks.cancel_scope.cancel()
        await server.gone.wait()


async def test_closing_the_client_ends_what_is_being_read() -> None:
    async with serving(flooding) as (_, client):
        reply = await client.post("/", b"", 5.0)
        await client.aclose()
        with pytest.raises(ConnectionLost):
            await read_all(reply)


def make_certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context for 127.0.0.1, and the file of its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    public, secret = folder / "public.pem", folder / "secret.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, secret)
    return context, public


async def test_https_asks_for_a_certificate_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls, authority = make_certificate(tmp_path)
    async with serving(answering(WHOLE, WHOLE), tls) as (server, client):
        with pytest.raises(TransportError):
            await client.post("/", b"", 5.0)
        assert server.heads == []
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    async with serving(answering(WHOLE, WHOLE), tls) as (server, client):
        for _ in range(2):
            assert await read_all(await client.post("/", b"", 5.0)) == b"ok"
        assert server.connections == 1


async def test_a_body_is_poured_as_it_comes_whatever_came_with_the_head() -> None:
    parts = [asyncio.Event() for _ in range(3)]

    def make(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.take(reader)
            writer.write(CHUNKED + b"1\r\na\r\n")
            for number, part in enumerate(parts):
                await part.wait()
                writer.write(b"1\r\n%d\r\n" % number)
            writer.write(b"0\r\n\r\n")
            await server.take(reader)
            writer.write(WHOLE)

        return serve

    taken: list[bytes] = []

    def take(data: bytes) -> None:
        taken.append(data)
        if len(taken) <= len(parts):
            parts[len(taken) - 1].set()

    async with serving(make) as (server, client):
        reply = await client.post("/", b"", 5.0)
        await reply.pour(take)
        assert taken == [b"a", b"0", b"1", b"2"]
        assert reply.is_whole
        reply.close()
        assert await read_all(await client.post("/", b"", 5.0)) == b"ok"
    assert server.connections == 1


async def test_who_takes_holds_the_server_back_until_it_was_waited_for() -> None:
    gate, calls, size = asyncio.Event(), 0, 0

    async def wait() -> None:
        await gate.wait()

    def take(data: bytes) -> Wait | None:
        nonlocal calls, size
        calls += 1
        size += len(data)
        return wait if calls == 1 else None

    async with serving(flooding) as (server, client), anyio.create_task_group() as tasks:
        reply = await client.post("/", b"", 60.0)
        tasks.start_soon(reply.pour, take)
        await anyio.wait_all_tasks_blocked()
        await until_held_back(server)
        assert calls == 1
        gate.set()
    assert size == 2**26


async def test_who_takes_late_gets_all_of_a_body_that_was_held_back_until_then() -> None:
    taken = 0

    def take(data: bytes) -> None:
        nonlocal taken
        taken += len(data)

    async with serving(flooding) as (server, client):
        reply = await client.post("/", b"", 60.0)
        await until_held_back(server)
        with anyio.fail_after(30):
            await reply.pour(take)
    assert taken == 2**26


async def test_a_wait_is_waited_for_also_where_the_body_has_ended() -> None:
    waited = False

    async def wait() -> None:
        nonlocal waited
        await anyio.lowlevel.checkpoint()
        waited = True

    async with serving(answering(CHUNKED + b"2\r\nok\r\n0\r\n\r\n")) as (_, client):
        reply = await client.post("/", b"", 5.0)
        await reply.pour(lambda _: wait)
        assert waited
        reply.close()


async def test_what_fails_in_taking_ends_the_pouring() -> None:
    def take(data: bytes) -> None:
        raise ZeroDivisionError

    async with serving(answering(CHUNKED + b"2\r\nok\r\n")) as (_, client):
        reply = await client.post("/", b"", 5.0)
        with pytest.raises(ZeroDivisionError):
            await reply.pour(take)
        reply.close()


async def test_what_came_before_a_failure_is_poured_before_it() -> None:
    taken: list[bytes] = []
    async with serving(answering(CHUNKED + b"2\r\nok\r\nrubbish\r\n")) as (_, client):
        reply = await client.post("/", b"", 5.0)
        with pytest.raises(MalformedReply):
            await reply.pour(taken.append)
        assert taken == [b"ok"]
        reply.close()


async def test_time_spent_waiting_for_who_takes_is_not_the_server_s() -> None:
    calls = 0

    async def wait() -> None:
        await anyio.sleep(0.3)

    def take(data: bytes) -> Wait | None:
        nonlocal calls
        calls += 1
        return wait

    answer = CHUNKED + b"".join(b"1\r\n%d\r\n" % number for number in range(3))
    async with serving(answering_once(answer + b"0\r\n\r\n")) as (_, client):
        reply = await client.post("/", b"", 5.0)
        reply.expect_within(0.2)
        await reply.pour(take)
        assert calls
        reply.close()


PIECE = b"".join(b"%06d\n" % number for number in range(3000))
"""What its order shows."""


@pytest.mark.parametrize("is_poured", [True, False])
async def test_large_pieces_of_many_replies_share_the_turns(is_poured: bool) -> None:
    """And all that came is read, also where the server has closed since."""
    together, gate, begun = 60, asyncio.Event(), 0
    turn, taken = 0, Counter[int]()
    bodies: list[bytes] = []

    def make(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.take(reader)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await gate.wait()
            writer.write(PIECE)

        return serve

    def count() -> None:
        nonlocal turn
        turn += 1
        if len(bodies) < together:
            asyncio.get_running_loop().call_soon(count)

    async def hear_out(client: Http1Client) -> None:
        nonlocal begun
        body: list[bytes] = []

        def take(data: bytes) -> None:
            taken[turn] += len(data)
            body.append(data)

        reply = await client.post("/", b"", 30.0)
        begun += 1
        if begun == together:
            count()
            gate.set()
        if is_poured:
            await reply.pour(take)
            reply.close()
            bodies.append(b"".join(body))
        else:
            bodies.append(await read_all(reply))

    async with serving(make) as (_, client), anyio.create_task_group() as tasks:
        for _ in range(together):
            tasks.start_soon(hear_out, client)
    assert bodies == [PIECE] * together
    assert max(taken.values(), default=0) <= TURN_BYTES + len(PIECE)


async def test_what_waits_for_its_turn_came_in_time() -> None:
    """A deadline that passes meanwhile is none: the server has spoken."""
    gate = asyncio.Event()

    def make(server: Server) -> Serve:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await server.take(reader)
            writer.write(CHUNKED)
            await gate.wait()
            writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(PIECE), PIECE))
            await server.see_it_go(reader)

        return serve

    async with serving(make) as (_, client):
        reply = await client.post("/", b"", 30.0)
        reply.expect_within(0.2)
        monopolised = client.turns
        monopolised._left = 0
        monopolised._is_noticed = True  # no turn begins
        gate.set()
        assert await reply.read() == PIECE
        monopolised._is_noticed = False
        monopolised._left = TURN_BYTES
        reply.close()
