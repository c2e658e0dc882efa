"""Static decode steps against the model's own forward pass. They are computed as they are, not
recorded: all but the recording itself is the same on every device."""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from gateway.engine.decoding import attention
from gateway.engine.decoding.decoder import CachedDecoder
from gateway.engine.decoding.graphs import CAPTURE_AFTER
from gateway.engine.decoding.kv_cache import CacheFull
from gateway.engine.decoding.runner import BatchRunner, Feed
from gateway.engine.decoding.stack import Stack
from gateway.engine.decoding.static_step import Bucket, StaticStep
from tests.integration.engine.ledger import Ledger
from tests.integration.engine.test_runner import FAMILIES
from tests.tiny_models import build_model
from tests.varlen_reference import varlen_attn

GRAPH_BYTES = 1000


class Recorders:
    """Starts recorders that record nothing: a replay computes the step."""

    def __init__(self) -> None:
        self.started = 0
        self.recorded = 0
        self.replayed = 0
        self.error: Exception | None = None

    def __call__(self) -> "_Recorder":
        self.started += 1
        return _Recorder(self)


class _Recorder:
    def __init__(self, recorders: Recorders) -> None:
        self._all = recorders
        self.memory_bytes = 0

    def record(self, step: StaticStep) -> Callable[[], Any]:
        self._all.recorded += 1
        if self._all.error is not None:
            raise self._all.error
        self.memory_bytes += GRAPH_BYTES

        def replay() -> Any:
            self._all.replayed += 1
            return step()

        return replay


def start(
    folder: Path, family: str = "llama", *, kernel: Any = None, **overrides: Any
) -> tuple[BatchRunner, Any, Recorders]:
    """Return a runner that replays, a model of its own to compare with, and its recorders."""
    from transformers import AutoModelForCausalLM

    build_model(folder, family=family, **FAMILIES[family], **overrides)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    attention.register()
    model.set_attn_implementation(attention.NAME)
    recorders = Recorders()
    runner = BatchRunner(model, Stack(model), kernel=kernel, recorder=recorders)
    return runner, AutoModelForCausalLM.from_pretrained(folder).eval(), recorders


class Speaker:
    """A sequence that says what is likeliest, and a decoder that says it alone."""

    def __init__(self, runner: BatchRunner, model: Any, prompt: list[int]) -> None:
        self.place = runner.open()
        self.new = prompt
        self._decoder = CachedDecoder(model)

    def feed(self) -> Feed:
        return Feed(self.place, self.new)

    def take(self, logits: Any) -> None:
        expected = self._decoder.feed(self.new)
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
        assert int(logits.argmax()) == int(expected.argmax())
        self.new = [int(logits.argmax())]

    def skip(self, new: int) -> None:
        """Go on with another token than the likeliest, after a step that asked for nothing."""
        self._decoder.feed(self.new)
        self.new = [new]


def step(runner: BatchRunner, speakers: list[Speaker]) -> None:
    found = runner.run([speaker.feed() for speaker in speakers])
    for speaker, logits in zip(speakers, found, strict=True):
        speaker.take(logits)


@pytest.mark.parametrize("kernel", [None, varlen_attn], ids=["padded", "varlen"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
@pytest.mark.parametrize("seed", range(2))
def test_whoever_comes_goes_or_waits_a_replay_says_what_the_model_says(
    tmp_path: Path, family: str, seed: int, kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.engine.decoding.graphs.CAPTURE_AFTER", 1)
    runner, model, recorders = start(tmp_path / "m", family, kernel=kernel)
    rng = random.Random(seed)
    living: list[Speaker] = []
    for _ in range(100):
        if len(living) < 6 and rng.random() < 0.15:
            prompt = [rng.randrange(200) for _ in range(rng.choice((1, 3, 40)))]
            living.append(Speaker(runner, model, prompt))
        chosen = [speaker for speaker in living if rng.random() < 0.8]
        # In any order: the logits are in that of the feeds.
        rng.shuffle(chosen)
        if chosen:
            step(runner, chosen)
        if living and rng.random() < 0.04:
            runner.release(living.pop(rng.randrange(len(living))).place)
    assert recorders.replayed > 20


def test_the_first_steps_of_a_size_are_eager_and_so_are_all_with_prompts(tmp_path: Path) -> None:
    runner, model, recorders = start(tmp_path / "m")
    first = Speaker(runner, model, [1, 2, 3])
    for _ in range(1 + CAPTURE_AFTER):
        step(runner, [first])
    assert recorders.recorded == 0
    step(runner, [first])
    step(runner, [first])
    assert (recorders.recorded, recorders.replayed) == (1, 2)
    step(runner, [first, Speaker(runner, model, [7, 8])])
    assert recorders.replayed == 2


def test_a_replay_that_nobody_asks_for_logits_still_writes_what_it_knows(tmp_path: Path) -> None:
    runner, model, recorders = start(tmp_path / "m")
    speaker = Speaker(runner, model, [1, 2, 3])
    for _ in range(CAPTURE_AFTER + 2):
        step(runner, [speaker])
    replayed = recorders.replayed
    assert runner.run([Feed(speaker.place, speaker.new, asks=False)]).shape[0] == 0
    assert recorders.replayed == replayed + 1
    speaker.skip(7)
    step(runner, [speaker])


def test_recordings_go_when_the_cache_gets_other_tensors(tmp_path: Path) -> None:
    runner, model, recorders = start(tmp_path / "m", max_position_embeddings=1024)
    memory = Ledger()
    runner.attach(memory, 0)
    speaker = Speaker(runner, model, [5] * 240)
    for _ in range(12):
        step(runner, [speaker])
    assert (recorders.started, recorders.recorded) == (1, 1)
    assert memory.taken == runner.memory_bytes == runner._cache.memory_bytes + GRAPH_BYTES
    for _ in range(8):  # beyond the 256 tokens that the cache began with
        step(runner, [speaker])
    assert memory.taken == runner.memory_bytes == runner._cache.memory_bytes
    for _ in range(8):
        step(runner, [speaker])
    assert (recorders.started, recorders.recorded) == (2, 2)
    runner.release(speaker.place)
    assert memory.taken == runner.memory_bytes == 0


def test_one_that_waits_where_the_cache_ends_keeps_what_it_has(tmp_path: Path) -> None:
    runner, model, recorders = start(tmp_path / "m", max_position_embeddings=1024)
    waiting, speaking = Speaker(runner, model, [5] * 256), Speaker(runner, model, [1, 2])
    step(runner, [waiting, speaking])
    for _ in range(CAPTURE_AFTER + 4):
        step(runner, [speaking])
    assert recorders.replayed == 0
    step(runner, [waiting, speaking])


def test_what_cannot_be_recorded_is_computed_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner, model, recorders = start(tmp_path / "m")
    recorders.error = RuntimeError("operation not permitted when stream is capturing")
    speaker = Speaker(runner, model, [1, 2, 3])
    with caplog.at_level(logging.WARNING, logger="gateway.engine.decoding.graphs"):
        for _ in range(4 * CAPTURE_AFTER):
            step(runner, [speaker])
    assert len(caplog.records) == recorders.recorded == 1
    assert "stream is capturing" in caplog.text
    assert recorders.replayed == 0


def test_where_there_is_no_memory_for_a_recording_steps_stay_eager(tmp_path: Path) -> None:
    runner, model, recorders = start(tmp_path / "m")
    speaker = Speaker(runner, model, [1, 2, 3])
    step(runner, [speaker])
    memory = Ledger(room=GRAPH_BYTES - 1)
    runner.attach(memory, 0)
    for _ in range(4 * CAPTURE_AFTER):
        step(runner, [speaker])
    assert (recorders.recorded, recorders.replayed) == (1, 0)
    assert memory.taken == 0


def test_recordings_go_before_a_sequence_is_refused_its_place(tmp_path: Path) -> None:
    runner, model, recorders = start(tmp_path / "m", max_position_embeddings=2048)
    memory = Ledger()
    runner.attach(memory, 0)
    speaker = Speaker(runner, model, [1] * 20)
    for _ in range(2 * CAPTURE_AFTER):
        step(runner, [speaker])
    assert recorders.replayed > 0
    # Room for 64 tokens more, but only without the recording.
    memory.room = memory.taken + 64 * runner._cache.token_bytes - GRAPH_BYTES
    speaker.new = [2] * (300 - speaker.place.length)
    step(runner, [speaker])
    assert memory.taken == runner.memory_bytes == runner._cache.memory_bytes
    with pytest.raises(CacheFull):
        runner.run([Feed(speaker.place, [3] * 500)])


class Operators(TorchDispatchMode):
    """Writes down what is computed: operators, their numbers and the shapes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = tree_map_only(
            torch.Tensor, lambda tensor: (tensor.shape, tensor.stride()), (args, kwargs)
        )
        self.calls.append((str(func), str(plain)))
        return func(*args, **(kwargs or {}))


class AnyKernel:
    """Stands where a kernel does that runs on no CPU; what it is asked is an operator's."""

    def __call__(self, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        return query.clone()


@pytest.mark.parametrize("kernel", [None, AnyKernel()], ids=["padded", "varlen"])
def test_a_step_is_the_same_whatever_fills_it_and_never_asks_what_came_out(
    tmp_path: Path, kernel: Any
) -> None:
    """Else a recording of it would be wrong, or impossible."""
    runner, _, _ = start(tmp_path / "m", "mistral", kernel=kernel)
    runner.run([Feed(runner.open(), [1, 2]) for _ in range(2)])
    stack, device = runner._stack, torch.device("cpu")
    assert stack is not None
    seen = []
    with torch.inference_mode():
        static = StaticStep(stack, runner._cache, Bucket(2, 256), device, kernel)
        for ids, positions in (([3, 4], [2, 2]), ([5, 6], [100, 17]), ([7, 8], [0, 255])):
            static.fill(ids, positions)
            with Operators() as operators:
                static()
            seen.append(operators.calls)
    assert seen[0] == seen[1] == seen[2]
    names = {name for name, _ in seen[0]}
    # Numbers of the host's, and numbers for the host.
    assert not {name for name in names if "lift_fresh" in name or "local_scalar" in name}
    assert not {name for name in names if "nonzero" in name or "masked_select" in name}


def test_recordings_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.engine.decoding.static_step.SMALLEST_WIDTH", 1)
    monkeypatch.setattr("gateway.engine.decoding.graphs.CAPTURE_AFTER", 0)
    monkeypatch.setattr("gateway.engine.decoding.graphs.MOST_GRAPHS", 2)
    runner, model, recorders = start(tmp_path / "m")
    speakers = [Speaker(runner, model, [seed + 1]) for seed in range(3)]
    step(runner, speakers)
    for count in (1, 2, 3):
        for _ in range(10):
            step(runner, speakers[:count])
    assert runner._graphs is not None
    assert recorders.recorded > 4
    assert len(runner._graphs._graphs) == 2
    # One that went must be met as often as a new one before it is recorded again.
    assert set(runner._graphs._met) == set(runner._graphs._graphs)
