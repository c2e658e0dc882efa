"""What the peer's API tells: search, models, the tree of files, whose a token is.

Source: the Hub's answers as huggingface_hub 2.4 reads them (`list_models`, `model_info`, `whoami`).
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from tests.integration.hub_peer.files import HubFile, HubRepo, refuse
from tests.integration.hub_peer.wire import Exchange

if TYPE_CHECKING:
    from tests.integration.hub_peer.server import HubPeer

PREFIX = "/api/models/"


@dataclass
class Api:
    """How the API is scripted: `page_size` bounds a page of a listing, `accounts` are laid over
    what is told of a token, `hold` is waited for before anything is answered."""

    page_size: int = 1000
    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    hold: asyncio.Event | None = None


async def answer_api(peer: "HubPeer", exchange: Exchange) -> None:
    """Answer a request below /api that is not for a file's bytes."""
    if peer.api.hold is not None:
        await peer.api.hold.wait()
    path = exchange.seen.path
    if path == "/api/whoami-v2":
        return await _tell_whoami(peer, exchange)
    if path == "/api/models":
        return await _list(peer, exchange)
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
        files = repo.trees.get(commit, repo.commits[commit]).values()
        return await exchange.json(200, [_describe_entry(file) for file in files])
    if kind in ("", "revision"):
        has_blobs = exchange.seen.query.get("blobs", "").lower() == "true"
        return await exchange.json(200, _describe(repo, commit, has_blobs))
    await exchange.json(404, {"error": "Not found"})


async def _tell_whoami(peer: "HubPeer", exchange: Exchange) -> None:
    token = exchange.seen.token
    if token not in peer.tokens:
        said = "Invalid username or password."
        return await refuse(exchange, 401, "", said)
    about: dict[str, Any] = {
        "type": "user",
        "name": peer.tokens[token],
        "orgs": [],
        "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": "read"}},
    }
    await exchange.json(200, about | peer.api.accounts.get(token, {}))


async def _list(peer: "HubPeer", exchange: Exchange) -> None:
    """Answer a page of the repositories that fit; `cursor` is where it begins."""
    token = exchange.seen.token
    if token is not None and token not in peer.tokens:
        return await refuse(exchange, 401, "", "Invalid credentials in Authorization header")
    pairs = parse_qsl(urlsplit(exchange.seen.target).query)
    asked = dict(pairs)
    shown = [repo for repo in peer.files.repos.values() if not repo.private]
    fitting = [repo for repo in shown if _fits(repo, asked)]
    fitting.sort(key=lambda repo: _rank(repo, asked.get("sort", "")), reverse=True)
    start = int(asked.get("cursor", "0"))
    stop = start + min(int(asked.get("limit", "1000")), peer.api.page_size)
    expanded = {value for name, value in pairs if name == "expand"}
    page = [_entry(repo, expanded) for repo in fitting[start:stop]]
    headers = []
    if stop < len(fitting):
        rest = [pair for pair in pairs if pair[0] != "cursor"]
        query = urlencode([*rest, ("cursor", str(stop))])
        headers.append(("Link", f'<{peer.url}/api/models?{query}>; rel="next"'))
    await exchange.json(200, page, headers)


def _fits(repo: HubRepo, asked: dict[str, str]) -> bool:
    tags = repo.about.get("tags", [])
    assert isinstance(tags, list)
    return (
        asked.get("search", "").lower() in repo.id.lower()
        and asked.get("author", repo.id.partition("/")[0]) == repo.id.partition("/")[0]
        and asked.get("pipeline_tag") in (None, repo.about.get("pipeline_tag"))
        and asked.get("filter") in (None, *tags)
    )


def _rank(repo: HubRepo, sort: str) -> Any:
    return repo.about.get(sort, "" if sort in ("createdAt", "lastModified") else 0)


def _entry(repo: HubRepo, expanded: set[str]) -> dict[str, Any]:
    whole = _describe(repo, repo.refs["main"], False)
    if not expanded:
        return {key: value for key, value in whole.items() if key != "siblings"}
    return {key: value for key, value in whole.items() if key in expanded or key == "id"}


def _describe(repo: HubRepo, commit: str, has_blobs: bool) -> dict[str, Any]:
    files = repo.commits[commit].values()
    return {
        "id": repo.id,
        "author": repo.id.partition("/")[0],
        "sha": commit,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "siblings": [dict(_sibling(file, has_blobs)) for file in files],
        **repo.about,
    }


def _sibling(file: HubFile, has_blobs: bool) -> Iterator[tuple[str, Any]]:
    yield "rfilename", file.path
    if has_blobs:
        yield "size", file.size
        yield "blobId", file.blob_id
        if file.lfs:
            yield "lfs", {"sha256": file.sha256, "size": file.size, "pointerSize": 134}


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
