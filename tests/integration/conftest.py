"""Fixtures that start real parts for the integration tests."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.ollama_peer import OllamaPeer


@pytest.fixture
async def ollama_peer() -> AsyncIterator[OllamaPeer]:
    """A scripted Ollama server on loopback, empty and alone for one test."""
    async with OllamaPeer() as peer:
        yield peer
