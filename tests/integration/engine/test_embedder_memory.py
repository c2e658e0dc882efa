"""What batches of long inputs take is reserved while they are computed, and enough."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest
from msgspec.structs import replace
from torch import Tensor

from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import NoRoom
from gateway.core.loading import LoadConfig
from gateway.core.names import ModelRef
from gateway.engine.embedding.embedder import EmbeddingEngine
from gateway.engine.embedding.loader import LoadedEmbedder, load_embedder
from gateway.engine.memory.budget import MemoryBudget
from tests.integration.engine.ledger import Ledger
from tests.tiny_models import build_encoder

REF = ModelRef("huggingface", "tiny")
LONGEST = 2000
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "max_position_embeddings": 2052}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_buckets": 64,
    "max_relative_positions": 512,
}
T5 = {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 2, "decoder_start_token_id": 0}
MARGIN = 40_000_000
"""What allocators and pages of code add in a process, whatever the batch: in glibc's heap a hole
of up to 32 MiB may stay between blocks that are in use; larger blocks are not there."""
Start = Callable[..., AbstractAsyncContextManager[EmbeddingEngine]]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the high-water mark")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("bert", {}),
        ("modernbert", {"local_attention": 128}),
        ("mpnet", {"pad_token_id": 1}),
        ("deberta-v2", DEBERTA),
        ("t5", T5),
    ],
)
def test_a_process_grows_by_no_more_than_is_told_of_a_batch(
    family: str, fields: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    folder = build_encoder(tmp_path / "m", family=family, **(SIZES | fields))
    child = [sys.executable, "-m", "tests.integration.engine.embed_peak_child"]
    done = subprocess.run(
        [*child, folder, dtype, "1x512", f"1x{LONGEST}", "2x1000"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for each in json.loads(done.stdout):
        assert each["grew"] <= each["told"] + MARGIN
        # Nor is it told in vain.
        assert each["told"] <= 4 * each["grew"] + MARGIN


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedEmbedder:
    fields = {"hidden_size": 64, "intermediate_size": 256, "max_position_embeddings": LONGEST}
    folder = build_encoder(tmp_path_factory.mktemp("models") / "bert", **fields)
    return load_embedder("tiny", folder, LoadConfig(device="cpu"))


@pytest.fixture
def start(loaded: LoadedEmbedder) -> Start:
    @asynccontextmanager
    async def start_(memory: Any) -> AsyncIterator[EmbeddingEngine]:
        engine = EmbeddingEngine(REF, loaded, max_queue=8, memory=memory)
        try:
            yield engine
        finally:
            await engine.aclose()

    return start_


def ask(*lengths: int) -> EmbedRequest:
    return EmbedRequest("r", "tiny", tuple((5,) * length for length in lengths))


async def test_a_long_input_takes_its_bytes_while_it_is_computed(
    loaded: LoadedEmbedder, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, run = Ledger(), LoadedEmbedder.run
    during: list[tuple[int, int]] = []

    def look(model: LoadedEmbedder, inputs: Any) -> Tensor:
        during.append((max(map(len, inputs)), ledger.taken))
        return run(model, inputs)

    monkeypatch.setattr(LoadedEmbedder, "run", look)
    async with start(ledger) as engine:
        await engine.embed(ask(LONGEST, 10, 512))
        assert ledger.taken == 0
    assert dict(during) == {LONGEST: loaded.extra_bytes(1, LONGEST), 512: 0, 10: 0}
    assert loaded.extra_bytes(1, LONGEST) > 2 * loaded.usual_bytes


async def test_an_input_without_room_fails_alone_and_says_what_it_takes(
    loaded: LoadedEmbedder, start: Start
) -> None:
    found: list[Embeddings] = []
    ledger = Ledger(room=loaded.extra_bytes(1, 1000))
    async with start(ledger) as engine, anyio.create_task_group() as tasks:

        async def embed(length: int) -> None:
            found.append(await engine.embed(ask(length)))

        tasks.start_soon(embed, 1000)
        tasks.start_soon(embed, 20)
        with pytest.raises(NoRoom, match=rf"{LONGEST} tokens: it takes [0-9]+ bytes"):
            await engine.embed(ask(20, LONGEST))
    assert sorted(each.usage.prompt_tokens for each in found) == [20, 1000]
    assert ledger.taken == 0


async def test_who_has_no_room_waits_for_that_which_other_models_make(
    loaded: LoadedEmbedder, start: Start
) -> None:
    budget = MemoryBudget(loaded.extra_bytes(1, LONGEST))
    other, own = budget.open(REF, 1), budget.open(REF, 0)
    assert other is not None and own is not None
    told: list[int] = []

    def relieve(size_bytes: int) -> None:
        told.append(size_bytes)
        other.close()

    own.on_shortage = relieve
    async with start(own) as engine:
        found = await engine.embed(ask(LONGEST))
    assert found.usage.prompt_tokens == LONGEST
    assert told == [budget.total_bytes]
    assert budget.used_bytes == 0


async def test_who_fails_for_want_of_room_asks_for_none_of_the_rest(
    loaded: LoadedEmbedder,
) -> None:
    asked: list[int] = []
    own = MemoryBudget(1).open(REF, 0)
    assert own is not None
    own.on_shortage = asked.append
    together = replace(loaded, batch_tokens=3 * LONGEST)
    engine = EmbeddingEngine(REF, together, max_queue=8, memory=own)
    with pytest.raises(NoRoom):
        await engine.embed(ask(LONGEST, LONGEST, LONGEST))
    await engine.aclose()
    assert set(asked) == {loaded.extra_bytes(3, LONGEST), loaded.extra_bytes(1, LONGEST)}
    assert asked.count(loaded.extra_bytes(1, LONGEST)) == asked.count(
        loaded.extra_bytes(3, LONGEST)
    )


async def test_who_waits_for_room_ends_with_the_model(start: Start) -> None:
    waits = anyio.Event()
    own = MemoryBudget(1).open(REF, 0)
    assert own is not None
    own.on_shortage = lambda _: anyio.from_thread.run_sync(waits.set, token=token)
    token = anyio.lowlevel.current_token()
    async with start(own) as engine, anyio.create_task_group() as tasks:

        async def embed() -> None:
            with pytest.raises(Exception, match="The model was unloaded"):
                await engine.embed(ask(LONGEST))

        tasks.start_soon(embed)
        await waits.wait()
        await engine.aclose()
