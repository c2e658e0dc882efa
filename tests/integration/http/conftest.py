"""Fixtures of the HTTP tests."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from gateway.bootstrap.server import spare_the_collector
from tests.integration.clients import node
from tests.integration.http import serving
from tests.integration.http.loop_turns import MAX_TURN_S, LoopTurns

BOTH_WAYS = (
    *("continued_streams", "decisions_face", "disconnect", "drain", "generate", "native_stream"),
    *("openai_provider_faces", "openai_python", "slow_clients", "streams_face", "upstream_cuts"),
    *("upstream_faults", "vanished"),
)
"""The tests of what the long way and the express way do alike: they are run with each."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    name = metafunc.module.__name__.rpartition(".test_")[2]
    if "way" in metafunc.fixturenames and name in BOTH_WAYS:
        metafunc.parametrize("way", ["long", "express"], indirect=True)


@pytest.fixture(autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How requests for tokens come in."""
    is_express = getattr(request, "param", "long") == "express"
    monkeypatch.setattr(serving.Way, "is_express", is_express)


@pytest.fixture(scope="session")
def node_modules() -> None:
    """The npm packages of the conformance clients, installed once."""
    node.install()


@pytest.fixture
async def quick_turns() -> AsyncIterator[LoopTurns]:
    """Fail a test in which the event loop computed for long in one turn: nobody else was served."""
    turns = LoopTurns(asyncio.get_running_loop())
    threshold = gc.get_threshold()
    spare_the_collector()  # as `gateway serve` does
    try:
        with turns.measured():
            yield turns
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)
    assert turns.longest_s < MAX_TURN_S, f"a turn of the loop computed for {turns.longest_s:.3f} s"
