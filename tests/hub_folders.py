"""Writes folders as the Hub's client leaves them in its cache: blobs by checksum, links, refs."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 128,
    "dtype": "bfloat16",
}


def tensor_file(tensors: Mapping[str, int] | None = None) -> bytes:
    """Return a sound safetensors file of byte tensors with these sizes."""
    table, position = {}, 0
    for name, size in (tensors or {"embed": 6, "head": 4}).items():
        offsets = [position, position + size]
        table[name] = {"dtype": "U8", "shape": [size], "data_offsets": offsets}
        position += size
    header = json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + bytes(range(position))


def model_files(**more: bytes) -> dict[str, bytes]:
    """Return the files of a small model."""
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": tensor_file(),
        **more,
    }


def put_local(folder: Path, files: Mapping[str, bytes] | None = None) -> Path:
    """Write a model's folder; return it."""
    for name, data in (model_files() if files is None else files).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def put_cached(
    cache: Path,
    repository: str,
    commit: str = "a" * 40,
    files: Mapping[str, bytes] | None = None,
    branch: str | None = "main",
) -> Path:
    """Write a snapshot of a repository as a download does; return its folder."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    if branch is not None:
        ref = root / "refs" / branch
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
    for name, data in (model_files() if files is None else files).items():
        blob = root / "blobs" / _blob_name(name, data)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (2 + name.count("/"))) / "blobs" / blob.name)
    return snapshot


def put_partial(cache: Path, repository: str, size: int = 5) -> Path:
    """Write what a download leaves that is cut off, as if long ago; return it."""
    blobs = cache / f"models--{repository.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    path = blobs / ("1" * 64 + ".incomplete")
    path.write_bytes(bytes(size))
    os.utime(path, (1e9, 1e9))
    return path


def _blob_name(name: str, data: bytes) -> str:
    """Return what the cache names a file by: large files have another kind of checksum."""
    if name.endswith((".safetensors", ".gguf", ".bin")):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
