"""Fixtures of the HTTP tests."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from tests.integration.clients import node
from tests.integration.http.loop_turns import MAX_TURN_S, LoopTurns


@pytest.fixture(scope="session")
def node_modules() -> None:
    """The npm packages of the conformance clients, installed once."""
    node.install()


@pytest.fixture
async def quick_turns() -> AsyncIterator[LoopTurns]:
    """Fail a test in which the event loop computed for long in one turn: nobody else was served."""
    turns = LoopTurns(asyncio.get_running_loop())
    gc.collect()
    gc.freeze()  # as `gateway serve` does
    try:
        with turns.measured():
            yield turns
    finally:
        gc.unfreeze()
    assert turns.longest_s < MAX_TURN_S, f"a turn of the loop computed for {turns.longest_s:.3f} s"
