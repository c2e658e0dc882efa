import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from bench import cells
from bench.cells import TOKENS, Cell, Kind, Load
from bench.faces import OPENAI
from bench.held import SILENT, Held, abort
from bench.load import Route
from bench.ollama_mock import OllamaMock
from bench.ollama_wire import MODEL
from bench.ollama_wire import OPENAI as WIRE
from bench.processes import Failed


@pytest.fixture
def nonces() -> Iterator[int]:
    return itertools.count(1)


@asynccontextmanager
async def running_mock() -> AsyncIterator[tuple[OllamaMock, Route]]:
    mock = OllamaMock()
    url = await mock.start()
    try:
        yield mock, Route(url, OPENAI, MODEL)
    finally:
        mock.close()


async def drive(load: Load) -> None:
    await load.open()
    try:
        await load.drive(0.0)
    finally:
        load.close()


@pytest.mark.parametrize("kind", cells.KINDS)
async def test_every_answer_of_a_load_is_counted(
    kind: Kind, nonces: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "TOKEN_MS", 1)
    async with running_mock() as (_, route):
        load = Load(Cell(kind, 3), route, nonces)
        await drive(load)
    assert (load.tally.answers, load.tally.lost) == (3, 0)
    assert load.tally.tokens == 3 * TOKENS[kind]
    assert len(load.tally.latencies) == 3
    assert len(load.tally.firsts) == (0 if kind == "piece" else 3)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (WIRE.piece(TOKENS["piece"]), "the answer is"),
        (WIRE.piece(TOKENS["piece"] - 1), "the answer is"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", "status 503: no"),
        (b"", "closed by the server"),
    ],
    ids=["another's answer", "a token is missing", "an error", "no answer"],
)
async def test_a_wrong_answer_is_a_lost_one(
    reply: bytes, reason: str, nonces: Iterator[int]
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b'"stream": false}')
        writer.write(reply)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        load = Load(Cell("piece", 1), Route(f"http://127.0.0.1:{port}", OPENAI, MODEL), nonces)
        with pytest.raises(Failed, match=reason):
            await drive(load)
    assert (load.tally.answers, load.tally.lost) == (0, 1)


async def test_aborts_are_seen_where_the_streams_come_from(nonces: Iterator[int]) -> None:
    async with running_mock() as (mock, route):
        found = await abort(route, mock, nonces, SILENT, aborts=10)
    assert (len(found.times), found.missed) == (10, 0)
    assert all(0 < seconds < 3 for seconds in found.times)


async def test_held_streams_stay_open(nonces: Iterator[int]) -> None:
    async with running_mock() as (mock, route):
        held = Held(route, nonces)
        await held.open(20, limit_s=10)
        assert mock.connections == len(held.connections) == 20
        held.reset()
