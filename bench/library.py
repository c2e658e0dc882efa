"""How long the library takes: a cold scan of cached models, one again, the look of a request, and
the whole listing of a gateway (`/api/v1/models/available`, but for its JSON).

    python -m bench.library             # 200 models; a number chooses how many

Builds a cache of the Hub as downloads leave it (blobs, links, refs), of models with the files and
the sizes of headers that a 7B model has, and removes it again.
"""

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread

from gateway.bootstrap.lifetime import running
from gateway.hub.cache import FileLibrary
from gateway.settings import Settings
from gateway.store import migrate

RUNS = 5
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}" * 60
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="?", type=int, default=200)
    count = parser.parse_args().models
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "hub"
        for number in range(count):
            build_repository(cache, f"models--org--model-{number}", number)

        def library() -> FileLibrary:
            return FileLibrary(Path(folder) / "models", cache)

        warm = library()
        found = len(warm.scan())
        assert found == count, found
        warm.find("org/model-7")
        figures = {
            "models": count,
            "cold_scan_ms": measure(lambda: library().scan()),
            "warm_scan_ms": measure(warm.scan),
            "cold_find_ms": measure(lambda: library().find("org/model-7")),
            "request_find_ms": measure(lambda: warm.find("org/model-7")),
            "listing_ms": anyio.run(measure_listing, Path(folder), cache, count),
        }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


async def measure_listing(folder: Path, cache: Path, count: int) -> float:
    """Return the median of several listings by a gateway that has verified what is there."""
    settings = Settings(
        data_dir=folder,
        hf_hub_cache=cache,
        hf_model_path=folder / "models",
        providers=("huggingface",),
    )
    await anyio.to_thread.run_sync(migrate.upgrade, settings.resolved_database_url)
    times = []
    async with running(settings) as gateway:
        await gateway.library.look()
        for _ in range(3 * RUNS):
            began = time.perf_counter()
            listing = await gateway.library.listing()
            times.append((time.perf_counter() - began) * 1000)
            assert len(listing.hub) == count
    return round(statistics.median(times), 3)


def measure(work: Callable[[], object]) -> float:
    """Return the median of several runs, in milliseconds."""
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(times), 3)


def build_repository(cache: Path, name: str, number: int) -> None:
    root = cache / name
    commit = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text(commit)
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    added = {number: {"special": True} for number in range(200)}
    tokenizer = {"chat_template": TEMPLATE, "added_tokens_decoder": added}
    texts = {
        "config.json": json.dumps({**CONFIG, "number": number}),
        "generation_config.json": "{}",
        "special_tokens_map.json": "{}",
        "tokenizer_config.json": json.dumps(tokenizer),
        "tokenizer.json": "{}" + " " * 10_000,
        "model.safetensors.index.json": "{}",
        "README.md": "x",
        "LICENSE": "x",
        ".gitattributes": "x",
    }
    files = {file: text.encode() for file, text in texts.items()}
    files |= {f"model-0000{part}-of-00002.safetensors": shard(part) for part in (1, 2)}
    for file, data in files.items():
        blob = root / "blobs" / hashlib.sha256(data + file.encode()).hexdigest()
        blob.write_bytes(data)
        (snapshot / file).symlink_to(Path("../../blobs") / blob.name)


def shard(part: int) -> bytes:
    """Return a file with a header of 145 tensors, of one number each."""
    table = {
        f"model.layers.{part}.{index}.self_attn.q_proj.weight": {
            "dtype": "BF16",
            "shape": [1],
            "data_offsets": [2 * index, 2 * index + 2],
        }
        for index in range(145)
    }
    header = json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + bytes(290)


if __name__ == "__main__":
    main()
