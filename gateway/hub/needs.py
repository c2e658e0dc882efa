"""What loading a model of the Hub would take, told from the headers of its files: not one weight is
fetched. The engine's own count is made of a folder that holds the headers alone.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from gateway.core.cards import ModelCard
from gateway.core.errors import HubError, HubProtocolError
from gateway.core.hub import HubFile, Need
from gateway.core.loading import LoadConfig, estimate_bytes
from gateway.core.models import LocalModel
from gateway.engine.needs import estimate_load
from gateway.hub.cache import FileLibrary
from gateway.hub.client import HubClient

MAX_SHARDS = 64
MAX_HEADER_BYTES = 16 * 2**20
MAX_CONFIG_BYTES = 4 * 2**20
AT_ONCE = 8
READ_S = 5.0
"""How long reading headers may take; then the sizes of the files must do."""
_FIRST_BYTES = 100_000
_CONFIGS = ("config.json", "modules.json")
_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")
_USUAL_GGUF = "Q4_K_M"


class Found(msgspec.Struct, frozen=True):
    """What the headers tell; None where there was nothing to read."""

    need: Need | None = None
    card: ModelCard | None = None


class NeedReader:
    """Reads headers of one Hub's files."""

    def __init__(self, client: HubClient, load: LoadConfig) -> None:
        self._client = client
        self._load = load

    async def read(
        self,
        repository: str,
        commit: str | None,
        files: Sequence[HubFile],
        dtypes: Mapping[str, int],
    ) -> Found:
        """Return what loading takes; never fails: where headers cannot be read, sizes count."""
        weights = [file for file in files if _is_weights(file.path)]
        has_config = any(file.path == "config.json" for file in files)
        if not weights or not has_config:
            return Found(_need_of_gguf(files))
        total = sum(file.size_bytes or 0 for file in weights)
        if len(weights) <= MAX_SHARDS:
            found = await self._read_headers(repository, commit or "main", files, total)
            if found is not None:
                return found
        return Found(_need_of_sizes(total, dtypes, self._load))

    async def _read_headers(
        self, repository: str, commit: str, files: Sequence[HubFile], total: int
    ) -> Found | None:
        root = f"/{repository}/resolve/{commit}/"
        wanted = [file.path for file in files if _is_weights(file.path) or file.path in _CONFIGS]
        copied: dict[str, bytes] = {}
        limiter = anyio.CapacityLimiter(AT_ONCE)
        failed = False

        async def copy(path: str) -> None:
            nonlocal failed
            async with limiter:
                try:
                    read = _read_header if _is_weights(path) else _read_config
                    copied[path] = await read(self._client, root + path)
                except HubError:
                    failed = True
                    tasks.cancel_scope.cancel()

        with anyio.move_on_after(READ_S):
            async with anyio.create_task_group() as tasks:
                for path in wanted:
                    tasks.start_soon(copy, path)
        if failed or len(copied) < len(wanted):
            return None
        return await anyio.to_thread.run_sync(_count, copied, total, self._load)


def _count(copied: Mapping[str, bytes], total: int, load: LoadConfig) -> Found | None:
    """Return what the engine says of a folder of these files, whose weights weigh `total`."""
    with tempfile.TemporaryDirectory(prefix="gateway-headers-") as name:
        folder = Path(name) / "model"
        folder.mkdir()
        for path, data in copied.items():
            (folder / path).write_bytes(data)
        model = FileLibrary(Path(name), Path(name) / "none").find("model")
        if model is None:
            return None
        whole: LocalModel = msgspec.structs.replace(model, size_bytes=total)
        return Found(Need(estimate_load(whole, load), "headers"), whole.card)


async def _read_config(client: HubClient, path: str) -> bytes:
    return (await client.get(path, max_bytes=MAX_CONFIG_BYTES)).data


async def _read_header(client: HubClient, path: str) -> bytes:
    """Return the beginning of a safetensors file up to its first weight."""
    data = await _read_start(client, path, _FIRST_BYTES)
    length = 8 + int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" or length > MAX_HEADER_BYTES:
        raise HubProtocolError(f"{path} does not begin as safetensors do.")
    if length > len(data):
        data = await _read_start(client, path, length)
    if length > len(data):
        raise HubProtocolError(f"{path} ends inside its header.")
    return data[:length]


async def _read_start(client: HubClient, path: str, size: int) -> bytes:
    headers = {"Range": f"bytes=0-{size - 1}", "Accept-Encoding": "identity"}
    data = bytearray()
    async with client.stream("GET", path, headers=headers) as reply:
        # A server that ignores ranges would send all of it.
        async for chunk in reply.aiter_bytes():
            data += chunk
            if len(data) >= size:
                break
    return bytes(data[:size])


def _is_weights(path: str) -> bool:
    """Tell whether the engine reads the file: those in folders are other forms of the model."""
    return _PLAIN.fullmatch(path) is not None


def _need_of_gguf(files: Sequence[HubFile]) -> Need | None:
    """Return what the GGUF file takes that goes by the repository's name alone."""
    models: dict[str, int] = {}
    for file in files:
        if file.path.endswith(".gguf"):
            stem = _SPLIT.sub("", file.path)
            models[stem] = models.get(stem, 0) + (file.size_bytes or 0)
    if not models:
        return None
    usual = [name for name in sorted(models) if _USUAL_GGUF in name.upper()]
    return Need(models[(usual or sorted(models))[0]], "sizes")


def _need_of_sizes(total: int, dtypes: Mapping[str, int], load: LoadConfig) -> Need:
    stored = max(dtypes, key=lambda name: dtypes[name], default="")
    return Need(estimate_bytes(total, _DTYPES.get(stored), load.dtype), "sizes")
