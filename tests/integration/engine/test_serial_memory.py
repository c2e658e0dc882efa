"""What models that are run one by one take for their sequences is counted, before it is taken."""

from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

from gateway.core.errors import NoRoom
from gateway.core.events import Generation
from gateway.core.loading import LoadConfig
from gateway.engine.decoding.kv_cache import CacheFull
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.decoding.runner import Feed
from gateway.engine.decoding.serial_runner import SerialRunner
from gateway.engine.loading.loader import load_model
from gateway.engine.loading.probe import DECODERS
from tests.integration.engine.conftest import StartEngine, ask
from tests.integration.engine.ledger import Ledger
from tests.integration.engine.test_families import FAMILIES
from tests.integration.engine.test_vision import CAT, show
from tests.tiny_models import build_model
from tests.tiny_vlms import build_vlm
from tests.told import collect

SERIAL = {
    name: (way, options)
    for name, (way, options) in FAMILIES.items()
    if way in DECODERS and name in ("gpt_oss", "mamba", "mamba2", "falcon_mamba", "qwen3_next")
}
PROMPT = [index * 7 % 200 for index in range(90)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("serial") / "m")


def open_runner(folder: Path, way: str = "cache") -> SerialRunner:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return SerialRunner(model, DECODERS[way])  # type: ignore[index]


def storages(place: Any) -> int:
    """What the cache of a place holds, by the attributes that transformers keeps it in."""
    tensors = [
        tensor
        for layer in place.decoder._cache.layers
        for value in vars(layer).values()
        for tensor in (value.values() if isinstance(value, dict) else [value])
        if isinstance(tensor, torch.Tensor)
    ]
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes.values())


@pytest.mark.parametrize("family", SERIAL)
def test_every_step_holds_what_the_caches_hold(tmp_path: Path, family: str) -> None:
    way, options = SERIAL[family]
    build_model(tmp_path, family=family, **options)
    runner, memory = open_runner(tmp_path, way), Ledger()
    runner.first_bytes()
    runner.attach(memory, 0)
    places = [runner.open() for _ in range(2)]
    for ids in (PROMPT, [3], [4]):
        runner.run([Feed(place, ids) for place in places])
        held = sum(map(storages, places))
        assert 0 < held <= memory.taken == runner.memory_bytes
        # Nothing was taken that had not been reserved, and little was for nothing.
        assert memory.most < 4 * held
    for place in places:
        runner.release(place)
    assert memory.taken == runner.memory_bytes == 0


@pytest.mark.parametrize("way", ["cache", "whole prompt"])
def test_a_step_that_is_refused_can_be_repeated_and_nobody_else_was_fed(
    tiny: Path, way: str
) -> None:
    runner, alone = open_runner(tiny, way), open_runner(tiny, way)
    memory = Ledger()
    runner.attach(memory, 0)
    first, second, reference = runner.open(), runner.open(), alone.open()
    runner.run([Feed(first, PROMPT)])
    alone.run([Feed(reference, PROMPT)])
    memory.room = memory.taken
    with pytest.raises(CacheFull, match=r"\d+ bytes more"):
        runner.run([Feed(first, [5]), Feed(second, PROMPT)])
    assert memory.taken == runner.memory_bytes == memory.room
    memory.room = 2**40
    # Another step than the one that was refused: as nothing ran, nothing is remembered of it.
    found = runner.run([Feed(first, [6, 7]), Feed(second, PROMPT[:9])])
    torch.testing.assert_close(found[0], alone.run([Feed(reference, [6, 7])])[0])


def test_the_first_bytes_are_what_a_short_sequence_takes(tiny: Path) -> None:
    runner = open_runner(tiny)
    memory = Ledger(room=runner.first_bytes())
    runner.attach(memory, 0)
    place = runner.open()
    for ids in (PROMPT, PROMPT, [1] * 76):
        runner.run([Feed(place, ids)])
    assert memory.most == memory.room
    with pytest.raises(CacheFull):
        runner.run([Feed(place, [1])])


def test_recomputing_keeps_nothing(tiny: Path) -> None:
    runner, memory = open_runner(tiny, "recompute"), Ledger(room=0)
    runner.attach(memory, 0)
    place = runner.open()
    runner.run([Feed(place, PROMPT)])
    assert memory.taken == runner.memory_bytes == runner.first_bytes() == 0


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("serial") / "m"
    way, options = FAMILIES["gpt_oss"]
    build_model(folder, family="gpt_oss", **options)
    loaded = load_model("serial", folder, LoadConfig(device="cpu"))
    assert loaded.recipe.way == way
    return loaded


async def test_streams_that_outgrow_the_budget_take_turns_and_all_are_answered(
    serial: LoadedModel, start_engine: StartEngine
) -> None:
    texts = ["Hello", "What is this?", "And that, may I ask?"]
    async with start_engine(serial) as engine:
        expected = [(await collect(engine.stream(ask(text)))).text for text in texts]
    token_bytes = serial.runner._learn().token_bytes  # type: ignore[attr-defined]
    memory = Ledger(room=serial.runner.first_bytes() // 2)
    said: dict[str, str] = {}
    async with start_engine(serial, memory=memory) as engine:

        async def come(text: str) -> None:
            said[text] = (await collect(engine.stream(ask(text)))).text

        async with anyio.create_task_group() as tasks:
            for text in texts:
                tasks.start_soon(come, text)
    assert [said[text] for text in texts] == expected
    assert memory.most > memory.room - 100 * token_bytes
    assert memory.taken == 0


async def test_a_prompt_that_fits_nowhere_is_refused_with_what_it_takes(
    serial: LoadedModel, start_engine: StartEngine
) -> None:
    async with start_engine(serial, memory=Ledger(room=1000)) as engine:
        with pytest.raises(NoRoom, match=r"takes \d+ bytes more"):
            await collect(engine.stream(ask("Hello")))
        assert engine.memory_bytes == serial.memory_bytes


async def test_an_image_and_what_is_made_of_it_are_counted(
    tmp_path: Path, start_engine: StartEngine
) -> None:
    loaded = load_model("vlm", build_vlm(tmp_path / "m", "qwen2_vl"), LoadConfig(device="cpu"))
    memory = Ledger()
    async with start_engine(loaded, memory=memory) as engine:
        answer: Generation = await collect(engine.stream(show("What is ", CAT, max_tokens=4)))
    text = [3] * (answer.usage.prompt_tokens if answer.usage else 0)
    pixels = loaded.encoder.prompt(show("What is ", CAT)).inputs["pixel_values"].nbytes
    assert memory.taken == 0
    plain = Ledger()
    loaded.runner.attach(plain, 0)
    place = loaded.runner.open()
    loaded.runner.run([Feed(place, text)])
    loaded.runner.release(place)
    assert memory.most >= plain.most + pixels


async def test_who_has_seen_his_images_is_never_started_over_without_them(
    tmp_path: Path, start_engine: StartEngine
) -> None:
    loaded = load_model("vlm", build_vlm(tmp_path / "m", "qwen2_vl"), LoadConfig(device="cpu"))
    requests = [show(text, CAT, max_tokens=150) for text in ("What is ", "Where is ", "Why is ")]
    memory = Ledger()
    async with start_engine(loaded, memory=memory) as engine:
        expected = [(await collect(engine.stream(each))).text for each in requests]
    memory = Ledger(room=memory.most * 2)
    said: dict[int, str | None] = {}
    async with start_engine(loaded, memory=memory) as engine:

        async def come(number: int) -> None:
            try:
                said[number] = (await collect(engine.stream(requests[number]))).text
            except NoRoom:
                said[number] = None

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(come, number)
    assert all(said[number] in (None, text) for number, text in enumerate(expected))
    assert any(said.values())
    assert memory.taken == 0
