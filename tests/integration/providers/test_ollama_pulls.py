"""Pulls at a scripted Ollama server: progress, ends, failures, and what stopping one does."""

import asyncio

import anyio
import pytest

from gateway.core.downloads import Fetched, Tally, parse_order
from gateway.core.errors import (
    GatewayError,
    IncompleteStream,
    InvalidRequest,
    ModelNotFound,
    ProviderError,
    ProviderProtocolError,
    ProviderTimeout,
    ProviderUnavailable,
)
from gateway.providers.ollama_pull_wire import OllamaPulls
from tests.integration.ollama_peer import Do, OllamaPeer, Step, answer, chunks, line

ORDER = parse_order("ollama/llama3.2")
A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
HEAD = line(status="pulling manifest")
TAIL = [
    line(status="verifying sha256 digest"),
    line(status="writing manifest"),
    line(status="success"),
]


def layer(digest: str, total: int, completed: int | None) -> bytes:
    told = {} if completed is None else {"completed": completed}
    return line(status=f"pulling {digest[7:19]}", digest=digest, total=total, **told)


async def pull(peer: OllamaPeer, tally: Tally | None = None, silence_s: float = 30.0) -> Fetched:
    pulls = OllamaPulls(peer.url, silence_s=silence_s)
    return await pulls.fetch(ORDER, tally or Tally(), commit=None, since=0.0)


async def test_the_layers_of_a_pull_add_up() -> None:
    steps: list[Step] = [
        HEAD,
        layer(A, 1000, None),
        layer(A, 1000, 400),
        layer(A, 1000, 1000),
        layer(B, 50, 50),
        *TAIL,
    ]
    tally = Tally()
    async with OllamaPeer() as peer:
        peer.script_route("/api/pull", chunks(steps))
        fetched = await pull(peer, tally)
    assert peer.requests[0].body == {"model": "llama3.2:latest", "stream": True}
    assert fetched == Fetched("Ollama has it.")
    assert (tally.bytes_done, tally.bytes_total) == (1050, 1050)
    assert (tally.bytes_present, tally.bytes_fetched) == (50, 1000)
    assert (tally.files_done, tally.files_total) == (2, 2)


async def test_a_pull_that_goes_on_counts_what_was_there() -> None:
    steps: list[Step] = [HEAD, layer(A, 1000, 700), layer(A, 1000, 1000), *TAIL]
    tally = Tally()
    async with OllamaPeer() as peer:
        peer.script_route("/api/pull", chunks(steps))
        await pull(peer, tally)
    assert (tally.bytes_present, tally.bytes_fetched) == (700, 300)


@pytest.mark.parametrize("layers", [[], [layer(A, 1000, 1000), layer(B, 50, 50)]])
async def test_what_ollama_has_already_was_there(layers: list[Step]) -> None:
    async with OllamaPeer() as peer:
        peer.script_route("/api/pull", chunks([HEAD, *layers, *TAIL]))
        fetched = await pull(peer)
    assert fetched.was_there


@pytest.mark.parametrize(
    ("steps", "error"),
    [
        (
            [HEAD, line(error="pull model manifest: file does not exist")],
            ModelNotFound,
        ),
        ([HEAD, layer(A, 9, 1), line(error="no space left on device")], ProviderError),
        ([HEAD, layer(A, 9, 9), TAIL[0]], IncompleteStream),
        ([HEAD, Do.CLOSE], IncompleteStream),
        ([HEAD, Do.RESET], ProviderError),
        ([HEAD, b"<html>\n"], ProviderProtocolError),
        ([HEAD, b'{"status": 3}\n'], ProviderProtocolError),
        ([HEAD, b"x" * (2**20 + 1)], ProviderProtocolError),
    ],
)
async def test_a_pull_that_does_not_succeed_says_why(
    steps: list[Step], error: type[GatewayError]
) -> None:
    async with OllamaPeer() as peer:
        peer.script_route("/api/pull", chunks(steps))
        with pytest.raises(error) as refused:
            await pull(peer)
    if error is ModelNotFound:
        assert "ollama.com/library" in str(refused.value.hint)


async def test_a_refused_name_is_the_caller_s_fault() -> None:
    async with OllamaPeer() as peer:
        peer.script_route("/api/pull", answer(400, b'{"error":"invalid model name"}'))
        with pytest.raises(InvalidRequest):
            await pull(peer)


async def test_a_silent_server_and_one_that_is_not_there_are_told_apart() -> None:
    async with OllamaPeer() as peer:
        peer.script_route("/api/pull", chunks([HEAD, asyncio.Event()]))
        with pytest.raises(ProviderTimeout):
            await pull(peer, silence_s=0.1)
        await peer.stop()
        with pytest.raises(ProviderUnavailable):
            await pull(peer)


async def test_stopping_a_pull_closes_the_connection_which_stops_ollama() -> None:
    async with OllamaPeer() as peer:
        held = asyncio.Event()
        peer.script_route("/api/pull", chunks([HEAD, layer(A, 9, 1), held]))
        tally = Tally()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull, peer, tally)
            while not tally.bytes_done:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        await peer.requests[0].until_closed()
