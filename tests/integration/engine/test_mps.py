"""The engine on a GPU of Apple's: the same attention over padded rows, and nothing recorded."""

from pathlib import Path

import pytest
import torch

from gateway.core.loading import LoadConfig
from gateway.engine.loading.loader import load_model
from tests.integration.engine.conftest import StartEngine, ask
from tests.integration.engine.reference import generated_by_transformers
from tests.tiny_models import build_model
from tests.told import collect

pytestmark = [
    pytest.mark.mps,
    pytest.mark.skipif(not torch.backends.mps.is_available(), reason="there is no MPS"),
]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
async def test_a_stream_says_what_generate_says(
    tmp_path: Path, family: str, start_engine: StartEngine
) -> None:
    folder = build_model(tmp_path / "m", family=family, head_dim=8)
    loaded = load_model("tiny", folder, LoadConfig(device="mps", dtype="float32"))
    request = ask("Hello " * 10, max_tokens=20)
    async with start_engine(loaded) as engine:
        answer = await collect(engine.stream(request))
    assert answer.text == generated_by_transformers(folder, loaded, request)
