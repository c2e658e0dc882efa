"""A Hub on loopback, and what talks to it."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.hub_peer.server import HubPeer


@pytest.fixture
async def hub() -> AsyncIterator[HubPeer]:
    """An empty Hub."""
    async with HubPeer() as peer:
        yield peer
