"""What the peer's API tells of repositories: model info and the tree of files."""

from typing import TYPE_CHECKING, Any

from tests.integration.hub_peer.files import HubFile, HubRepo, refuse
from tests.integration.hub_peer.wire import Exchange

if TYPE_CHECKING:
    from tests.integration.hub_peer.server import HubPeer

PREFIX = "/api/models/"


async def answer_api(peer: "HubPeer", exchange: Exchange) -> None:
    """Answer a request below /api that is not for a file's bytes."""
    path = exchange.seen.path
    found = peer.find_repo(path.removeprefix(PREFIX)) if path.startswith(PREFIX) else None
    if found is None:
        return await peer.refuse_unknown(exchange)
    repo, rest = found
    if not await peer.admits(exchange, repo):
        return None
    kind, _, revision = rest.partition("/")
    commit = repo.resolve(revision or "main")
    if commit is None:
        return await refuse(exchange, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
    if kind == "tree":
        files = repo.commits[commit].values()
        return await exchange.json(200, [_describe_entry(file) for file in files])
    if kind in ("", "revision"):
        return await exchange.json(200, _describe(repo, commit))
    await exchange.json(404, {"error": "Not found"})


def _describe(repo: HubRepo, commit: str) -> dict[str, Any]:
    files = repo.commits[commit].values()
    return {
        "id": repo.id,
        "sha": commit,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "siblings": [{"rfilename": file.path} for file in files],
        **repo.about,
    }


def _describe_entry(file: HubFile) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": file.path,
        "size": file.size,
        "oid": file.blob_id,
    }
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return entry
