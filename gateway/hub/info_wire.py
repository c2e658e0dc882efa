"""The Hub's JSON of models, read into our own terms. Pure; one odd entry costs only itself.

Source: `ModelInfo` in huggingface_hub's hf_api.py, which reads the same fields.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from gateway.core.errors import HubProtocolError
from gateway.core.hub import HubFile, HubModel

FIELDS = (
    *("author", "createdAt", "downloads", "gated", "lastModified", "library_name", "likes"),
    *("pipeline_tag", "private", "safetensors", "sha", "tags"),
)
"""What a listing is asked to tell of each model."""
_LICENSE = "license:"


class _Blob(msgspec.Struct):
    sha256: str | None = None
    size: int | None = None


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int | None = None
    lfs: _Blob | None = None


class _Weights(msgspec.Struct):
    total: int | None = None
    parameters: dict[str, int] = {}


class _Gguf(msgspec.Struct):
    total: int | None = None
    architecture: str | None = None
    context_length: int | None = None


class Info(msgspec.Struct):
    """One model as the Hub tells it."""

    id: str
    author: str | None = None
    sha: str | None = None
    pipeline_tag: str | None = None
    library_name: str | None = None
    downloads: int | None = None
    likes: int | None = None
    gated: bool | str | None = None
    private: bool | None = None
    tags: list[str] | None = None
    safetensors: _Weights | None = None
    gguf: _Gguf | None = None
    config: dict[str, Any] | None = None
    siblings: list[_Sibling] | None = None
    created_at: datetime | None = msgspec.field(default=None, name="createdAt")
    last_modified: datetime | None = msgspec.field(default=None, name="lastModified")

    def to_model(self) -> HubModel:
        owner, slash, _ = self.id.partition("/")
        tags = self.tags or []
        weights = self.safetensors or self.gguf
        return HubModel(
            id=self.id,
            author=self.author or (owner if slash else None),
            sha=self.sha,
            task=self.pipeline_tag,
            library=self.library_name,
            license=next((tag[len(_LICENSE) :] for tag in tags if tag.startswith(_LICENSE)), None),
            downloads=self.downloads,
            likes=self.likes,
            gated=self.gated if isinstance(self.gated, str) else None,
            private=bool(self.private),
            tags=tuple(tags),
            parameters=None if weights is None else weights.total,
            created_at=None if self.created_at is None else self.created_at.timestamp(),
            updated_at=None if self.last_modified is None else self.last_modified.timestamp(),
        )

    def files(self) -> Iterator[HubFile]:
        for entry in self.siblings or ():
            blob = entry.lfs or _Blob()
            yield HubFile(entry.rfilename, entry.size or blob.size, blob.sha256)

    @property
    def dtypes(self) -> Mapping[str, int]:
        return {} if self.safetensors is None else self.safetensors.parameters

    @property
    def architecture(self) -> str | None:
        listed = (self.config or {}).get("architectures")
        if isinstance(listed, list) and listed and isinstance(listed[0], str):
            return listed[0]
        return None if self.gguf is None else self.gguf.architecture


_INFO = msgspec.json.Decoder(Info)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_BROKEN = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def read_info(data: bytes) -> Info:
    """Return the one model; raises HubProtocolError."""
    try:
        return _INFO.decode(data)
    except _BROKEN as error:
        raise HubProtocolError("What the Hub says of the model cannot be read.") from error


def read_listing(data: bytes) -> list[HubModel]:
    """Return the models of a page; raises HubProtocolError if it is none."""
    try:
        entries = _LIST.decode(data)
    except _BROKEN as error:
        raise HubProtocolError("The Hub's listing cannot be read.") from error
    found = []
    for entry in entries:
        try:
            found.append(_INFO.decode(entry).to_model())
        except _BROKEN:
            continue
    return found
