"""A real model of images and text behind both faces, over real HTTP."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from openai import AsyncOpenAI, BadRequestError

from gateway.hub.cache import FileLibrary
from gateway.providers import ProviderContext, load
from gateway.settings import Settings
from tests.integration.http.serving import Served, serving
from tests.tiny_models import build_model
from tests.tiny_vlms import build_vlm, draw, encode

VLM, BLIND = "huggingface/eyes", "huggingface/blind"
SEEN, OTHER = encode(draw((48, 32), seed=1), "PNG"), encode(draw((48, 32), seed=2), "PNG")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that sees and one that does not."""
    folder = tmp_path_factory.mktemp("models")
    build_vlm(folder / "eyes", "qwen2_vl")
    build_model(folder / "blind")
    return folder


@asynccontextmanager
async def serving_models(models: Path) -> AsyncIterator[Served]:
    async with anyio.create_task_group() as tasks:
        context = ProviderContext(
            library=FileLibrary(models, models / "no-hub"),
            observe=lambda change: None,
            task_group=tasks,
            clock=anyio.current_time,
        )
        service: Any = load("huggingface")(Settings(hf_device="cpu"), context)
        async with serving(service) as served:
            yield served
        await service.aclose()


def url_of(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


async def ask_openai(client: AsyncOpenAI, model: str, *images: bytes) -> str:
    parts: list[Any] = [{"type": "text", "text": "What is "}]
    parts += [{"type": "image_url", "image_url": {"url": url_of(image)}} for image in images]
    completion = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": parts}],
        temperature=0,
        max_tokens=16,
    )
    return completion.choices[0].message.content or ""


async def ask_natively(served: Served, *images: bytes, **more: Any) -> dict[str, Any]:
    sent = [base64.b64encode(image).decode() for image in images]
    message = {"role": "user", "content": "What is ", "images": sent}
    body = {"model": VLM, "messages": [message], "options": {"temperature": 0, "max_tokens": 16}}
    reply = await served.client.post("/api/v1/generate", json={**body, **more})
    answer: dict[str, Any] = reply.json()
    return answer


async def test_both_faces_show_a_model_the_same_image(models: Path) -> None:
    async with (
        serving_models(models) as served,
        AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        seen, other, both, none = [
            await ask_openai(client, VLM, *images)
            for images in ((SEEN,), (OTHER,), (SEEN, OTHER), ())
        ]
        assert len({seen, other, both, none}) == 4
        natively = await ask_natively(served, SEEN)
        assert natively["text"] == seen
        assert (await ask_natively(served, SEEN, OTHER))["text"] == both
        # An image takes its tokens of the context, and they are counted.
        assert (
            natively["usage"]["prompt_tokens"]
            > (await ask_natively(served))["usage"]["prompt_tokens"]
        )


async def test_a_prompt_with_images_is_a_message_with_images(models: Path) -> None:
    async with serving_models(models) as served:
        by_message = await ask_natively(served, SEEN)
        sent = {"prompt": "What is ", "images": [base64.b64encode(SEEN).decode()]}
        by_prompt = await served.client.post(
            "/api/v1/generate",
            json={"model": VLM, **sent, "options": {"temperature": 0, "max_tokens": 16}},
        )
    assert by_prompt.json()["text"] == by_message["text"]


async def test_streams_with_images_run_side_by_side(models: Path) -> None:
    answers: dict[bytes, str] = {}
    async with (
        serving_models(models) as served,
        AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        alone = {image: await ask_openai(client, VLM, image) for image in (SEEN, OTHER)}

        async def run(image: bytes) -> None:
            answers[image] = await ask_openai(client, VLM, image)

        async with anyio.create_task_group() as tasks:
            for image in (SEEN, OTHER):
                tasks.start_soon(run, image)
    assert answers == alone


async def test_the_listing_says_who_sees_and_a_blind_model_refuses_images(models: Path) -> None:
    async with (
        serving_models(models) as served,
        AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        listed = await served.client.get("/api/v1/models", params={"capability": "vision"})
        assert [model["id"] for model in listed.json()["models"]] == [VLM]
        with pytest.raises(BadRequestError, match="does not support images"):
            await ask_openai(client, BLIND, SEEN)


async def test_a_broken_image_is_the_callers_fault_and_the_next_is_served(models: Path) -> None:
    async with serving_models(models) as served:
        # Its header is whole, so that only the decoding can find it out.
        refused = await ask_natively(served, SEEN[:-200])
        assert refused["error"]["code"] == "invalid_request"
        assert "broken" in refused["error"]["message"]
        assert (await ask_natively(served, SEEN))["text"]
