"""langchain-openai against the OpenAI face."""

import httpx2
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from gateway.core.events import Waiting
from tests.integration.http.serving import serving
from tests.scripted_provider import ScriptedProvider, answer

WAITING = Waiting("loading", fraction=0.5)


async def test_chat_openai_invokes_and_streams() -> None:
    async with serving(ScriptedProvider([WAITING, *answer("hel", "lo")])) as served:
        with httpx2.Client() as sync_client:
            async with httpx2.AsyncClient() as client:
                chat = ChatOpenAI(
                    model="scripted/echo",
                    base_url=f"{served.url}/v1",
                    api_key=SecretStr("none"),
                    max_retries=0,
                    stream_usage=True,
                    http_client=sync_client,
                    http_async_client=client,
                )
                whole = await chat.ainvoke("hello")
                chunks = [chunk async for chunk in chat.astream("hello")]
    assert whole.content == "hello"
    assert whole.usage_metadata is not None and whole.usage_metadata["total_tokens"] == 5
    assert [chunk.content for chunk in chunks if chunk.content] == ["hel", "lo"]
    total = sum(chunk.usage_metadata["total_tokens"] for chunk in chunks if chunk.usage_metadata)
    assert total == 5
