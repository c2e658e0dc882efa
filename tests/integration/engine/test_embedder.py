"""EmbeddingEngine over tiny random models, against what transformers alone computes."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModel

from gateway.core.embeddings import Embeddings, EmbedRequest, unpack_vector
from gateway.core.errors import (
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    ModelLoadFailed,
    Overloaded,
)
from gateway.core.loading import LoadConfig
from gateway.core.names import ModelRef
from gateway.engine.embedding.embedder import EmbeddingEngine
from gateway.engine.embedding.loader import LoadedEmbedder, load_embedder
from tests.tiny_models import WORDS, build_encoder, build_model, module, write_modules

REF = ModelRef("huggingface", "tiny")
TEXTS = ("a gateway embeds texts", "the", " ".join(WORDS * 3), "nothing else of any length")
POOLED = [module(0, "Transformer", ""), module(1, "Pooling", "1_Pooling")]
Rows = dict[str, Callable[[Tensor], Tensor]]
POOLINGS: Rows = {
    "pooling_mode_cls_token": lambda hidden: hidden[0],
    "pooling_mode_max_tokens": lambda hidden: hidden.max(dim=0).values,
    "pooling_mode_mean_tokens": lambda hidden: hidden.mean(dim=0),
    "pooling_mode_mean_sqrt_len_tokens": lambda hidden: hidden.sum(dim=0) / len(hidden) ** 0.5,
    "pooling_mode_weightedmean_tokens": lambda hidden: (
        sum(row * (place + 1) for place, row in enumerate(hidden)) / sum(range(1, len(hidden) + 1))
    ),
    "pooling_mode_lasttoken": lambda hidden: hidden[-1],
}
StartEmbedder = Callable[..., AbstractAsyncContextManager[EmbeddingEngine]]


@pytest.fixture
def start() -> StartEmbedder:
    @asynccontextmanager
    async def start_(loaded: LoadedEmbedder, *, max_queue: int = 8) -> AsyncIterator[Any]:
        engine = EmbeddingEngine(REF, loaded, max_queue=max_queue)
        try:
            yield engine
        finally:
            await engine.aclose()

    return start_


class Gate:
    """Holds the model back at its next batch, and tells when it got there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = anyio.Event(), anyio.Event()
        self.inputs: list[list[int]] = []
        self.batches: list[int] = []
        run = LoadedEmbedder.run

        def held(model: LoadedEmbedder, inputs: Any) -> Tensor:
            self.inputs += inputs
            self.batches.append(len(inputs))
            anyio.from_thread.run_sync(self.reached.set, token=self._token)
            anyio.from_thread.run(self.opened.wait, token=self._token)
            return run(model, inputs)

        self._token = anyio.lowlevel.current_token()
        monkeypatch.setattr(LoadedEmbedder, "run", held)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> LoadedEmbedder:
    return load(build_encoder(tmp_path_factory.mktemp("models") / "bert"))


def load(folder: Path) -> LoadedEmbedder:
    return load_embedder("tiny", folder, LoadConfig(device="cpu"))


def ask(*inputs: str | tuple[int, ...], **fields: Any) -> EmbedRequest:
    return EmbedRequest("r", "tiny", inputs, **fields)


def rows(found: Embeddings) -> Tensor:
    return torch.tensor([unpack_vector(vector) for vector in found.vectors])


def hidden_states(folder: Path, ids: list[int]) -> Tensor:
    """Return what the bare model computes of one input alone, without masks and padding."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        states: Tensor = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return states


def bert_ids(text: str) -> list[int]:
    return [2, *(WORDS.index(word) + 5 for word in text.split()), 3]


@pytest.mark.parametrize("flag", POOLINGS)
async def test_each_pooling_is_that_of_the_bare_model(
    flag: str, tmp_path: Path, start: StartEmbedder
) -> None:
    folder = build_encoder(tmp_path / "m", pooling={flag: True})
    async with start(load(folder)) as engine:
        found = await engine.embed(ask(*TEXTS))
    expected = [POOLINGS[flag](hidden_states(folder, bert_ids(text))) for text in TEXTS]
    assert_close(rows(found), torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert found.usage.prompt_tokens == sum(len(bert_ids(text)) for text in TEXTS)
    assert found.ref == REF


async def test_poolings_stand_side_by_side_and_are_scaled_to_length_one(
    tmp_path: Path, start: StartEmbedder
) -> None:
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    modules = [*POOLED, module(2, "Normalize", "2_Normalize")]
    folder = build_encoder(tmp_path / "m", pooling=flags, modules=modules)
    async with start(load(folder)) as engine:
        found = rows(await engine.embed(ask("the model")))
    hidden = hidden_states(folder, bert_ids("the model"))
    joined = torch.cat([hidden[0], hidden.mean(dim=0)])
    assert_close(found[0], joined / joined.norm(), rtol=1e-4, atol=1e-5)


async def test_a_dense_layer_comes_after_the_pooling(tmp_path: Path, start: StartEmbedder) -> None:
    modules = [*POOLED, module(2, "Dense", "2_Dense")]
    folder = build_encoder(tmp_path / "m", pooling={}, modules=modules)
    weight, bias = torch.randn(8, 32), torch.randn(8)
    (folder / "2_Dense").mkdir()
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense/model.safetensors")
    activation = {"activation_function": "torch.nn.modules.activation.Tanh"}
    (folder / "2_Dense/config.json").write_text(json.dumps(activation))
    loaded = load(folder)
    async with start(loaded) as engine:
        found = rows(await engine.embed(ask("the model")))
    mean = hidden_states(folder, bert_ids("the model")).mean(dim=0)
    assert_close(found[0], torch.tanh(weight @ mean + bias), rtol=1e-4, atol=1e-4)
    assert loaded.dimensions == 8


async def test_without_files_that_say_so_a_vector_is_the_mean_at_length_one(
    bert: LoadedEmbedder, start: StartEmbedder
) -> None:
    async with start(bert) as engine:
        found = rows(await engine.embed(ask("texts into vectors")))
    ids = torch.tensor([bert_ids("texts into vectors")])
    with torch.inference_mode():
        mean = bert.model(input_ids=ids).last_hidden_state[0].mean(dim=0)
    assert_close(found[0], mean / mean.norm(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "fields", "room"),
    [
        ("mpnet", {"pad_token_id": 1}, 62),
        ("xlm-roberta", {"pad_token_id": 1}, 62),
        ("modernbert", {"local_attention": 8}, 64),
        ("nomic_bert", {}, 64),
        ("distilbert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}, 64),
    ],
)
async def test_families_give_the_same_vectors_alone_and_together(
    family: str, fields: dict[str, Any], room: int, tmp_path: Path, start: StartEmbedder
) -> None:
    special = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    options = special if family == "modernbert" else {}
    folder = build_encoder(tmp_path / "m", family=family, pooling={}, **options, **fields)
    loaded = load(folder)
    assert loaded.batch_tokens > 0
    async with start(loaded) as engine:
        together = rows(await engine.embed(ask(*TEXTS)))
        alone = [rows(await engine.embed(ask(text)))[0] for text in TEXTS]
        longest = await engine.embed(ask((5,) * room))
        with pytest.raises(ContextLengthExceeded):
            await engine.embed(ask((5,) * (room + 1)))
    expected = [hidden_states(folder, bert_ids(text)).mean(dim=0) for text in TEXTS]
    assert_close(torch.stack(alone), torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-4)
    assert longest.usage.prompt_tokens == room


async def test_a_model_that_padding_disturbs_is_given_one_input_at_a_time(
    tmp_path: Path, start: StartEmbedder
) -> None:
    # Its convolutions see the padding, whatever the mask says.
    loaded = load(build_encoder(tmp_path / "m", family="convbert", pooling={}))
    async with start(loaded) as engine:
        assert not engine.is_batched
        together = rows(await engine.embed(ask(*TEXTS)))
        alone = [rows(await engine.embed(ask(text)))[0] for text in TEXTS]
    assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        loaded.run([bert_ids(text) for text in TEXTS]), torch.stack(alone), atol=1e-2
    )


async def test_a_decoder_s_last_token_speaks_for_the_text(
    tmp_path: Path, start: StartEmbedder
) -> None:
    folder = build_model(tmp_path / "m", family="qwen3", head_dim=8, chat=False)
    modules = [*POOLED, module(2, "Normalize", "2_Normalize")]
    write_modules(folder, modules=modules, pooling={"pooling_mode_lasttoken": True})
    async with start(load(folder)) as engine:
        found = rows(await engine.embed(ask("Hello", "a longer text beside it")))
        ids = (9, 8, 7, 6)
        by_ids = rows(await engine.embed(ask(ids)))
    last = hidden_states(folder, list(ids))[-1]
    assert_close(by_ids[0], last / last.norm(), rtol=1e-4, atol=1e-5)
    assert found.shape == (2, 32)
    async with start(load(folder)) as engine:
        assert_close(rows(await engine.embed(ask("Hello")))[0], found[0], rtol=1e-4, atol=1e-5)


async def test_requests_share_batches_and_get_what_they_would_get_alone(
    bert: LoadedEmbedder, start: StartEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [ask(*(" ".join(WORDS[i : i + size]) for i in range(8))) for size in range(1, 6)]
    together: dict[int, Tensor] = {}
    async with start(bert) as engine:
        alone = [rows(await engine.embed(request)) for request in asked]

        async def embed(number: int) -> None:
            together[number] = rows(await engine.embed(asked[number]))

        gate = Gate(monkeypatch)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.embed, ask((5,)))
            await gate.reached.wait()
            for number in range(len(asked)):
                tasks.start_soon(embed, number)
            while len(engine._worker._jobs) <= len(asked):
                await anyio.lowlevel.checkpoint()
            gate.opened.set()
    for number, expected in enumerate(alone):
        assert_close(together[number], expected, rtol=1e-4, atol=1e-5)
    assert gate.batches == [1, 40]


async def test_dimensions_are_the_first_ones_at_length_one(
    bert: LoadedEmbedder, start: StartEmbedder
) -> None:
    async with start(bert) as engine:
        whole = rows(await engine.embed(ask("the model")))[0]
        cut = rows(await engine.embed(ask("the model", dimensions=5)))[0]
        with pytest.raises(InvalidRequest, match="have 32"):
            await engine.embed(ask("the model", dimensions=33))
    assert_close(cut, whole[:5] / whole[:5].norm())


async def test_a_text_that_is_too_long_is_refused_or_cut_and_still_ends(
    tmp_path: Path, start: StartEmbedder
) -> None:
    folder = build_encoder(tmp_path / "m", pooling={}, max_seq_length=6)
    async with start(load(folder)) as engine:
        with pytest.raises(ContextLengthExceeded, match=r"'input\[1\]' has 7 tokens.* takes 6"):
            await engine.embed(ask("the", "a model gateway embeds texts"))
        cut = await engine.embed(ask("a model gateway embeds texts", truncate=True))
        same = await engine.embed(ask("a model gateway embeds"))
        ids = await engine.embed(ask((5,) * 9, truncate=True))
    assert cut == same
    assert ids.usage.prompt_tokens == 6


async def test_text_that_spells_a_control_token_is_text(
    bert: LoadedEmbedder, start: StartEmbedder
) -> None:
    async with start(bert) as engine:
        spelled = await engine.embed(ask("the [SEP] model"))
        cut_short = await engine.embed(ask((2, 5, 3, 7, 3)))
    assert spelled.usage.prompt_tokens == 7
    assert not torch.allclose(rows(spelled), rows(cut_short), atol=1e-3)


@pytest.mark.parametrize("ids", [(), (19,), (5, 10**6)])
async def test_ids_that_the_model_does_not_have_are_refused(
    ids: tuple[int, ...], bert: LoadedEmbedder, start: StartEmbedder
) -> None:
    async with start(bert) as engine:
        with pytest.raises(InvalidRequest):
            await engine.embed(ask(ids))


async def test_who_leaves_is_computed_no_further(
    bert: LoadedEmbedder, start: StartEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    one_by_one = msgspec.structs.replace(bert, batch_tokens=0)
    async with start(one_by_one) as engine:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.embed, ask((5,) * 3, (6,) * 2, (7,)))
            await gate.reached.wait()
            tasks.cancel_scope.cancel()
            gate.opened.set()
        await engine.embed(ask((8,)))
    assert gate.inputs == [[5, 5, 5], [8]]


async def test_requests_take_turns_and_too_many_are_refused(
    bert: LoadedEmbedder, start: StartEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    one_by_one = msgspec.structs.replace(bert, batch_tokens=0)
    async with start(one_by_one, max_queue=1) as engine, anyio.create_task_group() as tasks:
        tasks.start_soon(engine.embed, ask((5,) * 3, (5,) * 2, (5,)))
        await gate.reached.wait()
        gate.reached = anyio.Event()
        async with anyio.create_task_group() as others:
            others.start_soon(engine.embed, ask((6,)))
            while [each.inputs for each in engine._worker._jobs][-1] != [[6]]:
                await anyio.lowlevel.checkpoint()
            with pytest.raises(Overloaded):
                await engine.embed(ask((7,)))
            gate.opened.set()
    assert gate.inputs == [[5, 5, 5], [5, 5], [6], [5]]


async def test_callers_take_turns_however_many_requests_one_has(
    bert: LoadedEmbedder, start: StartEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    one_by_one = msgspec.structs.replace(bert, batch_tokens=0)
    async with start(one_by_one) as engine, anyio.create_task_group() as tasks:
        for number, (caller, token) in enumerate([("a", 5), ("a", 6), ("a", 7), ("b", 8)]):
            request = msgspec.structs.replace(ask((token,)), caller=caller)
            tasks.start_soon(engine.embed, request)
            while len(engine._worker._jobs) <= number:
                await anyio.lowlevel.checkpoint()
        gate.opened.set()
    assert gate.inputs in ([[5], [8], [6], [7]], [[5], [6], [8], [7]])  # b came before or after


async def test_an_input_that_fails_fails_its_own_request_alone(
    bert: LoadedEmbedder, start: StartEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = LoadedEmbedder.run

    def fail(model: LoadedEmbedder, inputs: Any) -> Tensor:
        if any(9 in ids for ids in inputs):
            raise RuntimeError("nine")
        return run(model, inputs)

    monkeypatch.setattr(LoadedEmbedder, "run", fail)
    errors: list[Exception] = []
    found: list[Embeddings] = []
    async with start(bert) as engine:

        async def embed(request: EmbedRequest) -> None:
            try:
                found.append(await engine.embed(request))
            except EngineFailed as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(embed, ask((5, 6), (9,)))
            tasks.start_soon(embed, ask((7, 8)))
        assert engine.alive
    assert (len(errors), len(found)) == (1, 1)


async def test_closing_ends_what_waits(
    bert: LoadedEmbedder, start: StartEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    one_by_one = msgspec.structs.replace(bert, batch_tokens=0)
    errors: list[EngineFailed] = []
    async with anyio.create_task_group() as tasks, start(one_by_one) as engine:

        async def embed() -> None:
            with pytest.raises(EngineFailed) as caught:
                await engine.embed(ask((5,), (6,)))
            errors.append(caught.value)

        tasks.start_soon(embed)
        await gate.reached.wait()
        tasks.start_soon(engine.aclose)
        while not engine._worker._closing:
            await anyio.lowlevel.checkpoint()
        gate.opened.set()
    assert [error.message for error in errors] == ["The model was unloaded."]
    assert not engine.alive


def test_weights_that_do_not_fit_the_architecture_are_no_model(tmp_path: Path) -> None:
    folder = build_encoder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelLoadFailed, match=r"do not fit BertModel: they lack encoder\.layer\.2"):
        load(folder)


def test_a_module_that_is_not_known_is_named(tmp_path: Path) -> None:
    modules = [*POOLED, module(2, "LayerNorm", "2_LayerNorm")]
    folder = build_encoder(tmp_path / "m", pooling={}, modules=modules)
    with pytest.raises(ModelLoadFailed, match=r"tiny could not be loaded: .*'LayerNorm'"):
        load(folder)
