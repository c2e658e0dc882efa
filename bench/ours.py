"""The worker of our engine without its servers, and of the plainer ways it could go.

python -m bench.ours packed|plain|serial FOLDER STREAMS DEVICE
"""

import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import anyio
import msgspec

from bench import worker
from bench.answers import Answer
from gateway.core.events import Finished, TextDelta
from gateway.core.loading import LoadConfig
from gateway.core.messages import GenerateRequest, Options
from gateway.core.names import ModelRef
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.decoding.serial_runner import SerialRunner
from gateway.engine.engine import TransformersEngine
from gateway.engine.loading.loader import load_model
from gateway.engine.loading.room import EngineRoom
from gateway.engine.weights.compute import ComputeThread
from gateway.engine.weights.runtime import import_torch


def load(way: str, folder: Path, device: str, room: EngineRoom) -> LoadedModel:
    """`packed` is what the gateway runs, `plain` the same with torch's own linear layers, and
    `serial` has one forward pass for each sequence, by transformers' own attention."""
    # Before all that imports torch: how long its threads wait awake is read once.
    import_torch()
    from gateway.engine.weights import linear

    if way != "packed":
        linear.can_pack = lambda model: False
    loaded = load_model("bench", folder, LoadConfig(device=device), room=room)
    if way == "serial":
        loaded.model.set_attn_implementation("sdpa")
        loaded = msgspec.structs.replace(loaded, runner=SerialRunner(loaded.model))
    while loaded.packing and not loaded.packing.is_done:
        loaded.packing.step()
    return loaded


def run_with(way: str, folder: Path, streams: int, device: str) -> worker.Run:
    room = EngineRoom(ComputeThread())
    loaded = load(way, folder, device, room)
    ref = ModelRef("huggingface", "bench")

    async def answer_all(prompts: Sequence[str], new_tokens: int) -> list[Answer]:
        engine = TransformersEngine(
            ref, loaded, max_active=streams, max_queue=streams, compute=room.compute_on(device)
        )
        answers = [Answer() for _ in prompts]
        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for prompt, answer in zip(prompts, answers, strict=True):
                tasks.start_soon(read, engine, prompt, new_tokens, answer, began)
        await engine.aclose()
        return answers

    return lambda prompts, new_tokens: anyio.run(answer_all, prompts, new_tokens)


async def read(
    engine: TransformersEngine, prompt: str, new_tokens: int, answer: Answer, began: float
) -> None:
    request = GenerateRequest(
        id="bench",
        model="bench",
        prompt=prompt,
        raw=True,
        options=Options(max_tokens=new_tokens, temperature=0),
    )
    async with aclosing(engine.stream(request)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                answer.times_s.append(time.perf_counter() - began)
            elif isinstance(event, Finished):
                answer.prompt_tokens = event.usage.prompt_tokens
                answer.completion_tokens = event.usage.completion_tokens


def main() -> None:
    way, folder, streams, device = sys.argv[1:5]
    worker.serve(lambda: run_with(way, Path(folder), int(streams), device))


if __name__ == "__main__":
    main()
