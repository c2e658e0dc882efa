"""Scripts: what takes over the answers of one model, or of one route."""

from collections.abc import Awaitable, Callable, Iterable, Sequence

from tests.integration.ollama_peer.exchange import Exchange, Step

Script = Callable[[Exchange], Awaitable[None]]


def chunks(
    steps: Iterable[Step],
    *,
    status: int = 200,
    content_type: str = "application/x-ndjson",
    headers: Sequence[tuple[str, str]] = (),
) -> Script:
    """Return a script that streams `steps`: each bytes a chunk of its own, each event a wait."""
    wanted = list(steps)

    async def play(exchange: Exchange) -> None:
        await exchange.head(
            status, [("Content-Type", content_type), ("Transfer-Encoding", "chunked"), *headers]
        )
        for step in wanted:
            if isinstance(step, bytes):
                await exchange.write(b"%x\r\n%b\r\n" % (len(step), step))
            elif not await exchange.do(step):
                return
        await exchange.write(b"0\r\n\r\n")

    return play


def answer(
    status: int,
    body: bytes = b"",
    content_type: str = "application/json; charset=utf-8",
    headers: Sequence[tuple[str, str]] = (),
) -> Script:
    """Return a script that answers with one whole message."""

    async def play(exchange: Exchange) -> None:
        await exchange.whole(status, body, content_type, headers)

    return play


def raw(steps: Iterable[Step]) -> Script:
    """Return a script that writes `steps` as they are, HTTP or not, and closes."""
    wanted = list(steps)

    async def play(exchange: Exchange) -> None:
        for step in wanted:
            if isinstance(step, bytes):
                await exchange.write(step)
            elif not await exchange.do(step):
                return
        exchange.hang_up()

    return play
