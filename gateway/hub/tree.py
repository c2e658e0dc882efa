"""The files of a repository's revision, as the Hub lists them. One odd entry spoils the whole: what
is fetched is all of it.

Source: `list_repo_tree` and `model_info` in huggingface_hub's hf_api.py, which read the same.
"""

from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from gateway.core.downloads import (
    MAX_FILES,
    DownloadOrder,
    RemoteFile,
    choose_files,
    is_blob_name,
    is_commit,
    require_safe,
)
from gateway.core.errors import HubProtocolError, RepositoryNotFound, UnsafeRepository
from gateway.hub.client import HubReply

T = TypeVar("T")


class Pages(Protocol):
    """What is needed of `hub.client.HubClient`."""

    async def get(self, path: str, params: Any = None) -> HubReply: ...


class _Entry(msgspec.Struct):
    type: str
    path: str
    size: int = 0
    oid: str = ""
    lfs: dict[str, Any] | None = None


class _Info(msgspec.Struct):
    sha: str


_TREE = msgspec.json.Decoder(list[_Entry])
_INFO = msgspec.json.Decoder(_Info)


async def read_tree(
    hub: Pages, order: DownloadOrder, commit: str | None
) -> tuple[str, tuple[RemoteFile, ...]]:
    """Return the commit of the revision and its files that the patterns want; `commit` is known
    already, or None. Raises HubError and UnsafeRepository."""
    base = f"/api/models/{order.repo}"
    if commit is None:
        revision = quote(order.revision or "main", safe="")
        reply = await hub.get(f"{base}/revision/{revision}")
        commit = _decode(_INFO, reply.data).sha
    if not is_commit(commit):
        raise HubProtocolError("The Hub names a commit that is none.")
    files: list[RemoteFile] = []
    url: str | None = f"{base}/tree/{commit}?recursive=true"
    while url is not None:
        page = await hub.get(url)
        files += [_read_file(e) for e in _decode(_TREE, page.data) if e.type == "file"]
        if len(files) > MAX_FILES:
            raise UnsafeRepository(f"The repository has more than {MAX_FILES} files.")
        url = page.next_url
    chosen = choose_files(files, order.patterns)
    if not chosen:
        raise RepositoryNotFound(
            "The repository has no file that the patterns fit.",
            hint=f"`gateway hub show {order.repo}` lists its files.",
        )
    return commit, chosen


def _read_file(entry: _Entry) -> RemoteFile:
    lfs = entry.lfs or {}
    size, blob = lfs.get("size", entry.size), lfs.get("oid", entry.oid)
    if not isinstance(size, int) or not isinstance(blob, str) or not is_blob_name(blob):
        raise HubProtocolError("The Hub lists a file without its checksum or size.")
    return require_safe(RemoteFile(entry.path, size, blob))


def _decode(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise HubProtocolError("The Hub answered something unreadable.") from error
