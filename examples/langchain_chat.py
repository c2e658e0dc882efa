"""The gateway with LangChain, which speaks to it as to OpenAI.

pip install langchain-openai; python examples/langchain_chat.py
"""
# ruff: noqa: T201

import os

from langchain_openai import ChatOpenAI

url = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8420")
chat = ChatOpenAI(
    model=os.environ.get("MODEL", "huggingface/demo"),
    base_url=f"{url}/v1",
    # Without keys the gateway takes any; the client insists on one.
    api_key=os.environ.get("GATEWAY_API_KEY", "any"),
    stream_usage=True,
)

for chunk in chat.stream("What is a gateway?"):
    print(chunk.content, end="", flush=True)
    if chunk.usage_metadata:
        print(f"\nusage: {chunk.usage_metadata['total_tokens']} tokens")
