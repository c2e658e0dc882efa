"""What loading a model of the Hub would take, told from the headers of its files: not one weight is
fetched. The engine's own count is made of a folder that holds the headers alone.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
import msgspec

from gateway.core.cards import PICKLES, ModelCard
from gateway.core.errors import HubError, HubProtocolError
from gateway.core.hub import HubFile, Need
from gateway.core.loading import LoadConfig, estimate_bytes
from gateway.core.models import LocalModel
from gateway.engine.files.needs import estimate_load
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
_PICKLE = re.compile(rf"{PICKLES}[A-Za-z0-9_.-]{{0,200}}\.bin")
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
            gguf = _need_of_gguf(files)
            # As the library reads it: pickles are the weights where there are no others.
            weights = [file for file in files if _PICKLE.fullmatch(file.path)]
            if gguf is not None or not weights or not has_config:
                return Found(gguf)
        total = sum(file.size_bytes or 0 for file in weights)
        names = [file.path for file in weights]
        configs = [file.path for file in files if file.path in _CONFIGS]
        if len(weights) <= MAX_SHARDS:
            root = f"/{repository}/resolve/{commit or 'main'}/"
            found = await self._read_headers(root, names, configs, total)
            if found is not None:
                return found
        is_pickled = not _is_weights(names[0])
        return Found(_need_of_sizes(total, dtypes, self._load, is_pickled))

    async def _read_headers(
        self, root: str, weights: Sequence[str], configs: Sequence[str], total: int
    ) -> Found | None:
        # Pickles have no header: which there are, and what they weigh, is all that is told of them.
        copied = {path: b"" for path in weights if not _is_weights(path)}
        wanted = [*configs, *(path for path in weights if _is_weights(path))]
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
        if failed or not copied.keys() >= set(wanted):
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
        is_pickled = model.card.format == "pickle"
        basis: Literal["headers", "sizes"] = "sizes" if is_pickled else "headers"
        return Found(Need(estimate_load(whole, load), basis, is_pickled), whole.card)


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


def _need_of_sizes(
    total: int, dtypes: Mapping[str, int], load: LoadConfig, is_pickled: bool
) -> Need:
    stored = max(dtypes, key=lambda name: dtypes[name], default="")
    weights = estimate_bytes(total, _DTYPES.get(stored), load.dtype)
    return Need(2 * weights if is_pickled else weights, "sizes", is_pickled)
