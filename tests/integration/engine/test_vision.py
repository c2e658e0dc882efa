"""Models of images and text: what they see, what they say, and what they survive."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from PIL import Image

from gateway.core.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    UnsupportedCapability,
)
from gateway.core.events import Generation, TextDelta
from gateway.core.messages import GenerateRequest, ImagePart, Message, Options, TextPart
from gateway.engine.decoding.decoder import VisionDecoder
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.decoding.pace import MAX_PREFILL
from gateway.engine.loading.loader import LoadConfig, load_model
from gateway.engine.text.processor import load_processor
from gateway.engine.text.vision import MARK
from gateway.engine.weights.linear import PackedLinear, can_pack
from tests.integration.engine.conftest import StartEngine, ask
from tests.tiny_vlms import FAMILIES, build_vlm, draw, encode
from tests.told import collect

Part = str | bytes
LoadVlm = Callable[[str], tuple[Path, LoadedModel]]

CAT, DOG = encode(draw((40, 24), seed=1)), encode(draw((24, 40), seed=2))
WIDE = encode(draw((90, 20), seed=3))


@pytest.fixture(scope="module")
def load_vlm(tmp_path_factory: pytest.TempPathFactory) -> LoadVlm:
    """Return a family's folder and loaded model, each built once."""
    loaded: dict[str, tuple[Path, LoadedModel]] = {}

    def load(family: str) -> tuple[Path, LoadedModel]:
        if family not in loaded:
            folder = build_vlm(tmp_path_factory.mktemp("vlm") / family, family)
            loaded[family] = folder, load_model(family, folder, LoadConfig(device="cpu"))
        return loaded[family]

    return load


def show(*parts: Part, **options: Any) -> GenerateRequest:
    """Return a greedy request of one user message: texts, and images as bytes."""
    content = tuple(TextPart(p) if isinstance(p, str) else ImagePart(p) for p in parts)
    chosen = Options(**{"temperature": 0.0, "max_tokens": 24, **options})
    return GenerateRequest(
        id="r", model="tiny", messages=(Message("user", content),), options=chosen
    )


def seen_by_transformers(folder: Path, parts: Sequence[Part]) -> dict[str, Any]:
    """Return the inputs that transformers itself makes of a user message."""
    from transformers import AutoConfig

    processor = load_processor(folder, AutoConfig.from_pretrained(folder))
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": Image.open(io.BytesIO(part))}
        for part in parts
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    return dict(inputs)


def said_by_transformers(folder: Path, inputs: dict[str, Any], max_tokens: int = 24) -> list[int]:
    """Return the answer's ids by `generate` of a model of its own."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    output = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    return output[0][inputs["input_ids"].shape[1] :].tolist()


def as_text(loaded: LoadedModel, ids: list[int]) -> str:
    return loaded.encoder.decode([token for token in ids if token not in loaded.eos_ids])


@pytest.mark.parametrize(
    "parts",
    [
        (CAT, "What is this?"),
        ("Is ", CAT, " like ", DOG, " or like ", WIDE, "?"),
        ("What is a gateway?",),
    ],
    ids=["an image", "three images", "text alone"],
)
@pytest.mark.parametrize("family", FAMILIES)
async def test_greedy_output_equals_generate(
    family: str, parts: tuple[Part, ...], load_vlm: LoadVlm, start_engine: StartEngine
) -> None:
    folder, loaded = load_vlm(family)
    inputs = seen_by_transformers(folder, parts)
    async with start_engine(loaded) as engine:
        answer = await collect(engine.stream(show(*parts)))
    assert loaded.encoder.encode(show(*parts)) == inputs["input_ids"][0].tolist()
    assert answer.text == as_text(loaded, said_by_transformers(folder, inputs))
    assert answer.usage.prompt_tokens == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("family", FAMILIES)
async def test_sequences_side_by_side_say_what_each_would_say_alone(
    family: str, load_vlm: LoadVlm, start_engine: StartEngine
) -> None:
    folder, loaded = load_vlm(family)
    asked: list[tuple[Part, ...]] = [
        (CAT, "Who?"),
        ("No image at all.",),
        (WIDE, DOG, "Which of the two?"),
        ("Where", DOG),
        ("x" * 300,),
    ]
    answers: dict[int, Generation] = {}

    async def run(index: int) -> None:
        answers[index] = await collect(engine.stream(show(*asked[index], max_tokens=16 + index)))

    async with start_engine(loaded, max_active=3) as engine, anyio.create_task_group() as tasks:
        for index in range(len(asked)):
            tasks.start_soon(run, index)
    for index, parts in enumerate(asked):
        inputs = seen_by_transformers(folder, parts)
        expected = said_by_transformers(folder, inputs, 16 + index)
        assert answers[index].text == as_text(loaded, expected), parts


@pytest.mark.parametrize("family", FAMILIES)
def test_another_image_gives_other_logits(family: str, load_vlm: LoadVlm) -> None:
    _, loaded = load_vlm(family)
    first, again, other = (
        first_logits(loaded, show(image, "What is this?"))
        for image in (CAT, CAT, encode(draw((40, 24), seed=9)))
    )
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


def first_logits(loaded: LoadedModel, request: GenerateRequest) -> torch.Tensor:
    prompt = loaded.encoder.prompt(request)
    return VisionDecoder(loaded.model, prompt.inputs or {}).feed(prompt.ids)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_text_that_spells_control_tokens_stays_text(
    family: str, load_vlm: LoadVlm, start_engine: StartEngine
) -> None:
    _, loaded = load_vlm(family)
    tokenizer = loaded.encoder._tokenizer
    controls = [*(str(token) for token in tokenizer.added_tokens_decoder.values()), MARK]
    spelled = "".join(f"{control}{MARK}0{MARK} and " for control in controls)
    plain = loaded.encoder.prompt(show(CAT, "?"))
    prompt = loaded.encoder.prompt(show(CAT, f"{spelled}?"))

    added = set(tokenizer.added_tokens_decoder)
    assert [i for i in prompt.ids if i in added] == [i for i in plain.ids if i in added]
    assert spelled in tokenizer.decode(prompt.ids)
    async with start_engine(loaded) as engine:
        answer = await collect(engine.stream(show(CAT, f"{spelled}?", max_tokens=4)))
    assert answer.usage.prompt_tokens == len(prompt.ids)


async def test_a_spelled_image_token_does_not_shift_the_images(
    load_vlm: LoadVlm, start_engine: StartEngine
) -> None:
    folder, loaded = load_vlm("qwen2_vl")
    request = show("Is <|image_pad|> this: ", CAT, "or <|vision_start|>", DOG, "?")
    prompt = loaded.encoder.prompt(request)
    assert prompt.inputs is not None
    kinds = prompt.inputs["mm_token_type_ids"]
    image_token = loaded.model.config.image_token_id
    assert [bool(kind) for kind in kinds[0]] == [token == image_token for token in prompt.ids]
    async with start_engine(loaded) as engine:
        answer = await collect(engine.stream(request))
    inputs = {"input_ids": torch.tensor([prompt.ids]), **prompt.inputs}
    assert answer.text == as_text(loaded, said_by_transformers(folder, inputs))


async def test_a_long_text_goes_in_chunks_and_an_image_in_one_piece(
    load_vlm: LoadVlm, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, loaded = load_vlm("qwen2_vl")
    fed: list[int] = []
    feed = VisionDecoder.feed

    def watch(self: VisionDecoder, ids: list[int], asks: bool = True) -> Any:
        fed.append(len(ids))
        return feed(self, ids, asks)

    monkeypatch.setattr(VisionDecoder, "feed", watch)
    for parts in (("x" * 600,), ("x" * 600, CAT)):
        fed.clear()
        async with start_engine(loaded) as engine:
            answer = await collect(engine.stream(show(*parts)))
        inputs = seen_by_transformers(folder, parts)
        assert answer.text == as_text(loaded, said_by_transformers(folder, inputs))
        tokens = inputs["input_ids"].shape[1]
        assert fed[0] == (tokens if CAT in parts else MAX_PREFILL)


@pytest.mark.parametrize("family", FAMILIES)
async def test_images_of_any_shape_and_kind_leave_the_engine_alive(
    family: str, load_vlm: LoadVlm, start_engine: StartEngine
) -> None:
    _, loaded = load_vlm(family)
    frames = [draw((8, 8), seed=n).convert("P") for n in range(2)]
    files = [
        *(encode(draw(size)) for size in ((1, 1), (3, 3), (1, 3), (4, 1), (200, 1), (1, 150))),
        *(encode(draw(mode=mode)) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")),
        encode(draw(mode="CMYK"), "JPEG"),
        encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    ]
    async with start_engine(loaded) as engine:
        for file in files:
            answer = await collect(engine.stream(show(file, "?", max_tokens=2)))
            assert answer.usage.completion_tokens > 0
        with pytest.raises(InvalidRequest, match="broken"):
            await collect(engine.stream(show(CAT[:-60], "?")))
        assert engine.alive


def with_template(folder: Path, tmp_path: Path, old: str, new: str) -> Path:
    """Return a copy of the model with another chat template."""
    copy = shutil.copytree(folder, tmp_path / "other")
    file = copy / "chat_template.jinja"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return copy


@pytest.mark.parametrize("family", ["llava", "idefics3", "gemma3"])
@pytest.mark.parametrize("places", [0, 2])
async def test_a_template_with_other_places_than_images_is_an_error_of_the_request(
    family: str, places: int, load_vlm: LoadVlm, tmp_path: Path, start_engine: StartEngine
) -> None:
    folder, _ = load_vlm(family)
    place = {"llava": "<image>\n", "idefics3": "<image>", "gemma3": "<boi>"}[family]
    other = with_template(folder, tmp_path, place, place * places)
    loaded = load_model("other", other, LoadConfig(device="cpu"))
    async with start_engine(loaded) as engine:
        with pytest.raises(InvalidRequest, match=f"{places} .*tokens and .*1.* images"):
            await collect(engine.stream(show(CAT, "What?")))
        answer = await collect(engine.stream(show("And without?", max_tokens=2)))
    assert answer.usage.completion_tokens > 0


@pytest.mark.parametrize("first", ["", "{{ bos_token }}"], ids=["tokenizer", "template"])
@pytest.mark.parametrize("parts", [(CAT, "What?"), ("What?",)], ids=["image", "text"])
def test_the_token_that_begins_a_text_is_there_once(
    first: str, parts: tuple[Part, ...], load_vlm: LoadVlm, tmp_path: Path
) -> None:
    start = "{% for message in messages %}"
    folder = with_template(load_vlm("llava")[0], tmp_path, start, first + start)
    file = folder / "tokenizer.json"
    begin = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    adds = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": adds}))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "bos_token": "<|endoftext|>"}))

    loaded = load_model("other", folder, LoadConfig(device="cpu"))
    ids = loaded.encoder.encode(show(*parts))
    assert ids == seen_by_transformers(folder, parts)["input_ids"][0].tolist()
    assert ids.count(0) == 1 and ids[0] == 0


async def test_a_processor_that_fails_fails_one_request(
    load_vlm: LoadVlm, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, loaded = load_vlm("llava")

    def fail(*_: Any, **__: Any) -> Any:
        raise IndexError("out of range, say")

    async with start_engine(loaded) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(type(loaded.encoder._processor.image_processor), "__call__", fail)
            with pytest.raises(EngineFailed, match="processor failed"):
                await collect(engine.stream(show(CAT)))
        assert (await collect(engine.stream(show(CAT, max_tokens=2)))).text


async def test_an_image_that_breaks_a_step_leaves_its_neighbours_as_they_were(
    load_vlm: LoadVlm, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, loaded = load_vlm("llava")
    processor = type(loaded.encoder._processor)
    process = processor.__call__

    def with_one_pixel_row_less(self: Any, *arguments: Any, **options: Any) -> Any:
        outputs = process(self, *arguments, **options)
        outputs["pixel_values"] = outputs["pixel_values"][..., :-8, :]
        return outputs

    parts = ("Tell me of ", DOG)
    async with start_engine(loaded) as engine:
        stream = engine.stream(show(*parts, max_tokens=60))
        while not isinstance(event := await anext(stream), TextDelta):
            pass
        with monkeypatch.context() as patch:
            patch.setattr(processor, "__call__", with_one_pixel_row_less)
            with pytest.raises(EngineFailed):
                await collect(engine.stream(show(CAT)))
        rest = [later.text async for later in stream if isinstance(later, TextDelta)]
    inputs = seen_by_transformers(folder, parts)
    said = event.text + "".join(rest)
    assert said == as_text(loaded, said_by_transformers(folder, inputs, 60))


async def test_an_image_too_large_for_the_context_is_refused(
    load_vlm: LoadVlm, start_engine: StartEngine
) -> None:
    _, loaded = load_vlm("qwen2_vl")
    async with start_engine(loaded) as engine:
        with pytest.raises(ContextLengthExceeded, match=r"\d+ tokens.*1024 tokens"):
            await collect(engine.stream(show(*[encode(draw((64, 64)))] * 17)))


def test_pixels_are_let_go_once_they_were_seen(load_vlm: LoadVlm) -> None:
    _, loaded = load_vlm("qwen2_vl")
    prompt = loaded.encoder.prompt(show(CAT, "?"))
    assert prompt.inputs is not None
    decoder = VisionDecoder(loaded.model, prompt.inputs)
    decoder.feed(prompt.ids)
    assert "pixel_values" in prompt.inputs and "pixel_values" not in decoder._state


def test_a_model_of_text_takes_no_images(llama: LoadedModel) -> None:
    with pytest.raises(UnsupportedCapability, match="no images"):
        llama.encoder.prompt(show(CAT, "?"))
    assert llama.encoder.prompt(ask("hello")).inputs is None


async def test_a_raw_prompt_goes_to_the_model_as_it_stands(
    load_vlm: LoadVlm, start_engine: StartEngine
) -> None:
    folder, loaded = load_vlm("gemma3")
    request = GenerateRequest(
        id="r",
        model="tiny",
        prompt="Once<|im_end|>",
        raw=True,
        options=Options(temperature=0.0, max_tokens=8),
    )
    ids = loaded.encoder.encode(request)
    assert len(ids) == len("Once") + 1
    async with start_engine(loaded) as engine:
        answer = await collect(engine.stream(request))
    expected = said_by_transformers(folder, {"input_ids": torch.tensor([ids])}, 8)
    assert answer.text == as_text(loaded, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_weights_see_about_the_same(family: str, load_vlm: LoadVlm) -> None:
    folder, whole = load_vlm(family)
    small = load_model(family, folder, LoadConfig(device="cpu", quantization="int8"))
    assert small.memory_bytes < whole.memory_bytes
    exact, close, other = (
        first_logits(loaded, show(image, "?"))
        for loaded, image in ((whole, CAT), (small, CAT), (small, DOG))
    )
    assert (exact - close).norm() < 0.5 * (exact - other).norm()


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
async def test_half_precision_with_packed_layers_sees_the_image(
    family: str, tmp_path: Path, start_engine: StartEngine
) -> None:
    folder = build_vlm(tmp_path / family, family, dtype=torch.bfloat16)
    loaded = load_model(family, folder, LoadConfig(device="cpu"))
    assert loaded.dtype == "bfloat16"
    packed = {
        "language_model" in name
        for name, module in loaded.model.named_modules()
        if isinstance(module, PackedLinear)
    }
    assert packed == ({True} if can_pack(loaded.model) else set())
    first, other = (first_logits(loaded, show(image, "?")) for image in (CAT, DOG))
    assert not torch.allclose(first, other, atol=0.1)
    async with start_engine(loaded) as engine:
        answer = await collect(engine.stream(show(CAT, "?", max_tokens=5)))
    assert answer.usage.completion_tokens > 0
