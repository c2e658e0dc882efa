"""What fetches models."""

from gateway.bootstrap.hub import Hub
from gateway.bootstrap.models import Models
from gateway.bootstrap.stores import Stores
from gateway.core.downloads import Download, DownloadOrder
from gateway.core.ports import DownloadSource
from gateway.hub.download import HubDownloads
from gateway.providers.ollama_pull_wire import OllamaPulls
from gateway.services.downloads import DownloadService
from gateway.settings import Settings


def build_downloads(
    settings: Settings,
    stores: Stores,
    hub: Hub,
    models: Models,
    place: str,
    boot: str,
) -> DownloadService:
    """`place` names the Hub's cache of this machine."""
    sources: dict[str, DownloadSource] = {
        "huggingface": HubDownloads(
            hub.client,
            settings.resolved_hub_cache,
            place=place,
            reserve_bytes=settings.download_reserve_bytes,
            connections=settings.download_connections,
        )
    }
    if "ollama" in settings.providers:
        sources["ollama"] = OllamaPulls(
            settings.ollama_host, connect_s=settings.ollama_connect_timeout_s
        )

    async def admit(order: DownloadOrder) -> None:
        """Raise HubTokenRequired where the operator wants a token for this."""
        if order.source == "huggingface":
            await hub.tokens.require_for_download(order.repo)

    def completed(_download: Download) -> None:
        models.tracker.look_again()
        models.library.look_soon()  # verifies the headers of what is new

    return DownloadService(
        stores.downloads,
        sources,
        node=settings.resolved_node,
        boot=boot,
        max_running=settings.downloads_at_once,
        max_watchers=settings.max_subscriptions,
        admit=admit,
        completed=completed,
    )
