"""Repositories of the peer and how their bytes are served: resolve, redirects, ranges, faults.

As the Hub does it: a file of LFS is redirected to a second host with a signed URL, any other is
served by the Hub itself behind a relative redirect. Source: huggingface_hub 2.4, file_download.py.
"""

import asyncio
import hashlib
import json
import re
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import quote

from tests.integration.hub_peer.wire import Exchange, Headers, Seen

SLICE_BYTES = 16 * 1024


@dataclass
class HubFile:
    """One file. `declared_size`, `declared_sha256` are what the Hub says, if it lies."""

    path: str
    data: bytes
    lfs: bool = True
    declared_size: int | None = None
    declared_sha256: str | None = None

    @property
    def size(self) -> int:
        return len(self.data) if self.declared_size is None else self.declared_size

    @cached_property
    def sha256(self) -> str:
        return self.declared_sha256 or hashlib.sha256(self.data).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """The git object id, which is the ETag of a file that is not in LFS."""
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id


@dataclass
class HubRepo:
    """One model repository: the files of each commit, and where the branches stand.

    `about` is laid over what the API tells of it: downloads, likes, tags, safetensors, ...
    `trees` are lists of files that differ from what the commits hold.
    """

    id: str
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    about: dict[str, object] = field(default_factory=dict)
    trees: dict[str, dict[str, HubFile]] = field(default_factory=dict)

    def commit(self, *files: HubFile, branch: str = "main") -> str:
        """Add a commit with the files of the branch's last one and `files`; return its id."""
        tree = dict(self.files(branch) or {}) | {file.path: file for file in files}
        content = json.dumps(
            [self.id, len(self.commits), [[file.path, file.etag] for file in tree.values()]]
        )
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[commit] = tree
        self.refs[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        """Return the commit that a branch or a commit id names."""
        return self.refs.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, HubFile] | None:
        return self.commits.get(self.resolve(revision) or "")


@dataclass
class Plan:
    """How one answer with a file's bytes goes wrong; the default does not.

    `cut_after`: close once that many bytes of this answer are sent, `reset`: not in order.
    `hold`: wait for the event before the byte `hold_after`. `etag`, `data` and `range_shift` (a
    Content-Range that is off by so much) are told or sent in place of the right ones;
    `ranges=False` ignores Range.
    """

    status: int = 200
    headers: Headers = ()
    cut_after: int | None = None
    reset: bool = False
    hold_after: int = 0
    hold: asyncio.Event | None = None
    etag: str | None = None
    data: bytes | None = None
    ranges: bool = True
    range_shift: int = 0
    encoding: str | None = None


class Files:
    """All repositories, and the plans for the next answers with bytes of each path."""

    def __init__(self) -> None:
        self.repos: dict[str, HubRepo] = {}
        self.cdn_url = ""
        self.signature = "signed"
        self._plans: defaultdict[str, deque[Plan]] = defaultdict(deque)
        self._standing: dict[str, Plan] = {}

    def add(self, repo_id: str, *files: HubFile, **about: object) -> HubRepo:
        """Add a repository whose branch main holds `files`."""
        repo = self.repos[repo_id] = HubRepo(repo_id, about=dict(about))
        repo.commit(*files)
        return repo

    def plan(self, path: str, *plans: Plan) -> None:
        """Let the next answers with bytes of the file `path` (of any repository) go by `plans`."""
        self._plans[path].extend(plans)

    def always(self, path: str, plan: Plan) -> None:
        """Let every answer with bytes of `path` go by `plan`, once those of `plan()` are spent."""
        self._standing[path] = plan

    async def resolve(self, exchange: Exchange, repo: HubRepo, revision: str, path: str) -> None:
        """Answer /{repo}/resolve/{revision}/{path}; who may see the repository is checked."""
        commit = repo.resolve(revision)
        if commit is None:
            return await refuse(exchange, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
        found = repo.commits[commit].get(path)
        about = [("X-Repo-Commit", commit), ("Accept-Ranges", "bytes")]
        if found is None:
            return await refuse(exchange, 404, "EntryNotFound", "Entry not found", about)
        if not found.lfs:
            place = f"/api/resolve-cache/models/{repo.id}/{commit}/{quote(path)}"
            head = [("Location", place), ("ETag", f'"{found.blob_id}"'), *about]
            return await exchange.reply(307, b"Temporary Redirect", head)
        head = [
            ("Location", f"{self.cdn_url}/{found.sha256}/{quote(path)}?Signature={self.signature}"),
            ("X-Linked-Size", str(found.size)),
            ("X-Linked-Etag", f'"{found.etag}"'),
            *about,
        ]
        await exchange.reply(302, b"Found", head)

    async def serve_cached(self, exchange: Exchange, repo: HubRepo, rest: str) -> None:
        """Answer /api/resolve-cache/models/{repo}/{commit}/{path}: a file that is not in LFS."""
        commit, _, path = rest.partition("/")
        found = (repo.files(commit) or {}).get(path)
        if found is None:
            return await refuse(exchange, 404, "EntryNotFound", "Entry not found")
        await self._send(exchange, found, found.data, [("X-Repo-Commit", commit)])

    async def serve_signed(self, exchange: Exchange) -> None:
        """Answer what the second host is asked for: /{sha256}/{path}?Signature=..."""
        sha256, _, path = exchange.seen.path.removeprefix("/").partition("/")
        if exchange.seen.query.get("Signature") != self.signature:
            return await exchange.reply(403, b"<Error><Code>AccessDenied</Code></Error>")
        for file in self._all():
            if file.lfs and file.sha256 == sha256 and file.path == path:
                return await self._send(exchange, file, file.data, [])
        await exchange.reply(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _all(self) -> Iterator[HubFile]:
        for repo in self.repos.values():
            for tree in repo.commits.values():
                yield from tree.values()

    async def _send(self, exchange: Exchange, file: HubFile, data: bytes, about: Headers) -> None:
        is_body = exchange.seen.method == "GET"
        waiting = self._plans[file.path]
        standing = self._standing.get(file.path, Plan())
        plan = (waiting.popleft() if waiting else standing) if is_body else Plan()
        if plan.status != 200:
            return await exchange.reply(plan.status, b"later", plan.headers)
        data = data if plan.data is None else plan.data
        etag = plan.etag or file.etag
        head = [("ETag", f'"{etag}"'), ("Accept-Ranges", "bytes"), *about, *plan.headers]
        if plan.encoding is not None:
            head.append(("Content-Encoding", plan.encoding))
        start = _first_byte(exchange.seen, etag) if plan.ranges else 0
        if start >= len(data) and start > 0:
            return await exchange.reply(
                416, b"", [("Content-Range", f"bytes */{len(data)}"), *head]
            )
        if start > 0:
            told = start + plan.range_shift
            head.append(("Content-Range", f"bytes {told}-{len(data) - 1}/{len(data)}"))
        await exchange.head(
            206 if start > 0 else 200, [("Content-Length", str(len(data) - start)), *head]
        )
        if is_body:
            await _send_body(exchange, data[start:], plan)


async def _send_body(exchange: Exchange, data: bytes, plan: Plan) -> None:
    """Send the body in slices, as far as the plan lets it."""
    stop = len(data) if plan.cut_after is None else min(plan.cut_after, len(data))
    at = 0
    while at < stop:
        if plan.hold is not None and at == min(plan.hold_after, stop):
            await plan.hold.wait()
        bounds = [stop, at + SLICE_BYTES]
        if plan.hold is not None and at < plan.hold_after:
            bounds.append(plan.hold_after)
        upto = min(bounds)
        await exchange.write(data[at:upto])
        at = upto
    if stop < len(data):
        exchange.reset() if plan.reset else exchange.finish()


async def refuse(
    exchange: Exchange, status: int, code: str, message: str, headers: Headers = ()
) -> None:
    """Answer as the Hub refuses: the reason is in the headers."""
    named = [("X-Error-Code", code), ("X-Error-Message", message), *headers]
    await exchange.json(status, {"error": message}, named)


def _first_byte(seen: Seen, etag: str) -> int:
    """Return where the asked range starts; 0 without one, or when If-Range names another file."""
    asked = re.fullmatch(r"bytes=(\d+)-", seen.headers.get("range", ""))
    condition = seen.headers.get("if-range", f'"{etag}"')
    return int(asked[1]) if asked is not None and condition == f'"{etag}"' else 0
