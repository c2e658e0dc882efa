"""The contract of ProviderStore, on every store."""

import pytest
from msgspec.structs import replace

from gateway.core.models import Capability, ProviderStatus
from gateway.core.ports import ProviderStore
from gateway.core.states import ProviderState
from gateway.store.database import Database
from gateway.store.providers import DatabaseProviderStore
from gateway.store.tables import providers

NOW = 1_790_000_000.25

UP = ProviderStatus(
    name="ollama",
    kind="ollama",
    state=ProviderState.UP,
    checked_at=NOW,
    last_seen_at=NOW,
    capabilities=(Capability.CHAT, Capability.VISION),
)
DOWN = ProviderStatus(
    name="ollama",
    kind="ollama",
    state=ProviderState.DOWN,
    checked_at=NOW + 30,
    error_code="provider_unavailable",
    error_message="Connection refused.",
)
NEVER_SEEN = ProviderStatus("vllm", "openai", ProviderState.UNKNOWN, NOW)


async def test_a_status_reads_back_as_written(provider_store: ProviderStore) -> None:
    await provider_store.put("a", [NEVER_SEEN, UP])
    assert await provider_store.all("a") == [UP, NEVER_SEEN]


async def test_nothing_to_put_is_harmless(provider_store: ProviderStore) -> None:
    await provider_store.put("a", [])
    assert await provider_store.all("a") == []


async def test_a_provider_that_goes_down_keeps_when_it_was_seen(
    provider_store: ProviderStore,
) -> None:
    await provider_store.put("a", [UP])
    await provider_store.put("a", [DOWN])
    assert await provider_store.all("a") == [replace(DOWN, last_seen_at=NOW)]


async def test_a_provider_that_comes_back_loses_its_error(provider_store: ProviderStore) -> None:
    again = replace(UP, checked_at=NOW + 60, last_seen_at=NOW + 60)
    await provider_store.put("a", [UP])
    await provider_store.put("a", [DOWN, again])
    assert await provider_store.all("a") == [again]


async def test_nodes_do_not_see_each_other(provider_store: ProviderStore) -> None:
    await provider_store.put("a", [UP])
    await provider_store.put("b", [DOWN])
    assert await provider_store.all("a") == [UP]
    assert await provider_store.all("b") == [DOWN]
    assert await provider_store.all("c") == []


@pytest.mark.parametrize(
    ("message", "stored"),
    [
        ("nul \x00 in it", "nul \ufffd in it"),
        ("\ud83e half", "\ufffd half"),
        ("<html>" * 10_000, ("<html>" * 10_000)[:3999] + "…"),
    ],
)
async def test_any_error_message_can_be_stored(
    provider_store: ProviderStore, message: str, stored: str
) -> None:
    await provider_store.put("a", [replace(DOWN, error_message=message), NEVER_SEEN])
    expected = [replace(DOWN, error_message=stored), NEVER_SEEN]
    assert await provider_store.all("a") == expected


async def test_a_capability_of_a_newer_gateway_is_passed_over(database: Database) -> None:
    store = DatabaseProviderStore(database)
    await store.put("a", [UP])
    async with database.writing() as connection:
        newer = providers.update().values(capabilities=["chat", "telepathy"])
        await connection.execute(newer)
    assert await store.all("a") == [replace(UP, capabilities=(Capability.CHAT,))]
