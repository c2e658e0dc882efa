"""Searches the Hub and tells what is in a repository: a core.ports.HubSource."""

from collections.abc import Sequence
from typing import Any

from gateway.core.downloads import is_commit
from gateway.core.errors import HubProtocolError
from gateway.core.hub import HubDetails, HubModel, HubQuery, Sort
from gateway.core.loading import LoadConfig
from gateway.hub.client import HubClient
from gateway.hub.info_wire import FIELDS, read_info, read_listing
from gateway.hub.needs import NeedReader

_SORTS: dict[Sort, str] = {
    "downloads": "downloads",
    "likes": "likes",
    "created": "createdAt",
    "updated": "lastModified",
    "trending": "trendingScore",
}


class HubSearch:
    """Asks the Hub anew each time; what is kept is for the services."""

    def __init__(self, client: HubClient, load: LoadConfig) -> None:
        """`load` is how models are loaded here unless somebody decides otherwise."""
        self._client = client
        self._needs = NeedReader(client, load)

    async def search(self, query: HubQuery) -> tuple[HubModel, ...]:
        """Return the models that fit, best first, at most `query.limit`."""
        reply = await self._client.get("/api/models", _parameters(query))
        found = read_listing(reply.data)
        while reply.next_url is not None and len(found) < query.limit:
            reply = await self._client.get(reply.next_url)
            page = read_listing(reply.data)
            if not page:
                break
            found += page
        return tuple(found[: query.limit])

    async def details(self, repository: str) -> HubDetails:
        """Return the files of the branch main, and what loading them would take."""
        reply = await self._client.get(f"/api/models/{repository}", {"blobs": "true"})
        info = read_info(reply.data)
        files = tuple(info.files())
        found = await self._needs.read(info.id, info.sha, files, info.dtypes)
        card = found.card
        context = None if info.gguf is None else info.gguf.context_length
        return HubDetails(
            model=info.to_model(),
            files=files,
            dtypes=tuple(info.dtypes.items()),
            architecture=(card.architecture if card else None) or info.architecture,
            context_length=(card.context_length if card else None) or context,
            need=found.need,
        )

    async def latest_commit(self, repository: str) -> str:
        """Return the commit of the branch main."""
        info = read_info((await self._client.get(f"/api/models/{repository}/revision/main")).data)
        if info.sha is None or not is_commit(info.sha):
            raise HubProtocolError("The Hub names a commit that is none.")
        return info.sha


def _parameters(query: HubQuery) -> dict[str, str | int | Sequence[str]]:
    asked: dict[str, Any] = {
        "search": query.search,
        "author": query.author,
        "pipeline_tag": query.task,
        "filter": query.library,
    }
    given = {name: value for name, value in asked.items() if value}
    return given | {"sort": _SORTS[query.sort], "limit": query.limit, "expand": FIELDS}
