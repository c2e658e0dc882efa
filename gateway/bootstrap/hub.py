"""What talks to the Hugging Face Hub."""

import logging
from functools import partial
from typing import NamedTuple

import anyio
import anyio.to_thread

from gateway.bootstrap.memory import budget_bytes
from gateway.core.loading import LoadConfig
from gateway.engine.loading.loader import choose_device
from gateway.hub.client import HubClient
from gateway.hub.search import HubSearch
from gateway.hub.token import ask_whoami
from gateway.services.hub import HubService
from gateway.services.hub_token import HubTokenService
from gateway.settings import Settings
from gateway.store.database import Database
from gateway.store.hub_cache import DatabaseHubCache
from gateway.store.secrets import DatabaseSecretStore
from gateway.store.vault import load_vault

logger = logging.getLogger(__name__)


class Hub(NamedTuple):
    """What talks to the Hub: the client is whoever opened it to close."""

    client: HubClient
    service: HubService
    tokens: HubTokenService


async def open_hub(settings: Settings, database: Database) -> Hub:
    """Build what talks to the Hub. Raises Misconfigured, DatabaseUnavailable."""
    vault = await anyio.to_thread.run_sync(
        load_vault, settings.secret_key.get_secret_value(), settings.resolved_secret_key_file
    )
    store = DatabaseSecretStore(database, vault)
    if moved := await store.rotate():
        logger.info("%d stored secrets are locked with the newest key now", moved)

    async def token() -> str | None:
        return await tokens.lookup()

    client = HubClient(
        settings.hub_endpoint,
        token,
        offline=settings.hf_hub_offline,
        timeout_s=settings.hub_timeout_s,
    )
    service = HubService(
        HubSearch(client, LoadConfig(settings.hf_device, settings.hf_dtype)),
        DatabaseHubCache(database),
        endpoint=settings.hub_endpoint,
        token=token,
        budget_bytes=partial(_budget_bytes, settings),
        fresh_s=settings.hub_cache_s,
        recommended=settings.hub_recommended,
        trust=settings.trust_rules,
    )
    tokens = HubTokenService(
        store,
        partial(ask_whoami, client),
        environment=settings.hf_token.get_secret_value() if settings.hf_token else None,
        changed=service.forget,
        required=settings.hub_require_token_for_downloads,
        recommended=settings.hub_recommended,
    )
    return Hub(client, service, tokens)


async def _budget_bytes(settings: Settings) -> int | None:
    """Return what models may take on the default device; None where the gateway runs none."""
    if "huggingface" not in settings.providers:
        return None
    device = await anyio.to_thread.run_sync(choose_device, settings.hf_device)
    return await anyio.to_thread.run_sync(budget_bytes, settings, device)
