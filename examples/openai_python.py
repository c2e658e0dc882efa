"""The gateway with openai-python: list, chat, stream with usage, and what an error looks like.

pip install openai; python examples/openai_python.py
"""
# ruff: noqa: T201

import os

from openai import NotFoundError, OpenAI

MODEL = os.environ.get("MODEL", "huggingface/demo")
QUESTION = "What is a gateway?"

url = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8420")
# Without keys the gateway takes any; the client insists on one.
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("GATEWAY_API_KEY", "any"))

print("models:", ", ".join(model.id for model in client.models.list()))

answer = client.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": QUESTION}],
    max_tokens=100,
    extra_body={"top_k": 20},  # beyond OpenAI, honoured by the gateway
)
print("answer:", answer.choices[0].message.content)

print("stream: ", end="")
stream = client.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": QUESTION}],
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:  # the last chunk has none, only the usage
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage:
        print(f"\nusage: {chunk.usage.prompt_tokens} + {chunk.usage.completion_tokens} tokens")

try:
    client.chat.completions.create(
        model="huggingface/dem", messages=[{"role": "user", "content": QUESTION}]
    )
except NotFoundError as error:
    print(f"error: {error.status_code} {error.code}: {error.body['message']}")
    print("request id:", error.response.headers["x-request-id"])
