"""The real services of the Hub for a gateway of the tests, with what they keep in memory."""

from functools import partial
from typing import TypedDict

import anyio
from anyio.abc import TaskGroup

from gateway.core.loading import LoadConfig
from gateway.hub.client import HubClient
from gateway.hub.search import HubSearch
from gateway.hub.token import ask_whoami
from gateway.services.hub import HubService
from gateway.services.hub_token import HubTokenService
from gateway.settings import Settings
from gateway.testing import MemoryHubCache, MemorySecretStore

BUDGET_BYTES = 8 * 10**9


class HubServices(TypedDict):
    hub: HubService
    hub_token: HubTokenService


def hub_services(settings: Settings, tasks: TaskGroup) -> HubServices:
    """Return them over the Hub that the settings name; connections close when `tasks` ends."""

    async def token() -> str | None:
        return await tokens.lookup()

    async def budget_bytes() -> int | None:
        return settings.memory_budget_bytes or BUDGET_BYTES

    client = HubClient(settings.hub_endpoint, token, offline=settings.hf_hub_offline)
    tasks.start_soon(_close_at_the_end, client)
    service = HubService(
        HubSearch(client, LoadConfig("cpu")),
        MemoryHubCache(),
        endpoint=settings.hub_endpoint,
        token=token,
        budget_bytes=budget_bytes,
        fresh_s=settings.hub_cache_s,
        recommended=settings.hub_recommended,
        trust=settings.trust_rules,
    )
    tokens = HubTokenService(
        MemorySecretStore(),
        partial(ask_whoami, client),
        environment=settings.hf_token.get_secret_value() if settings.hf_token else None,
        changed=service.forget,
        required=settings.hub_require_token_for_downloads,
        recommended=settings.hub_recommended,
    )
    return {"hub": service, "hub_token": tokens}


async def _close_at_the_end(client: HubClient) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await client.aclose()
