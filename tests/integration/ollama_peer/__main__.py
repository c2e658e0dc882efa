"""Serves a few models with canned answers, by hand."""

import argparse
import asyncio
import contextlib
import sys

from tests.integration.ollama_peer.peer import OllamaPeer


async def serve(port: int, token_delay_s: float) -> None:
    async with OllamaPeer(port, token_delay_s) as peer:
        peer.add_model("llama3.2:latest", capabilities=["completion", "tools"])
        peer.add_model("qwen3:8b", capabilities=["completion", "tools", "thinking"])
        peer.add_model("llava:7b", capabilities=["completion", "vision"])
        peer.add_model("nomic-embed-text", capabilities=["embedding"], family="nomic-bert")
        peer.load("llama3.2:latest")
        sys.stdout.write(f"{peer.url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


def main() -> None:
    """Serve a few models with canned answers until interrupted."""
    parser = argparse.ArgumentParser(description="A make-believe Ollama server.")
    parser.add_argument("--port", type=int, default=11434)
    parser.add_argument("--token-delay-s", type=float, default=0.05)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(options.port, options.token_delay_s))


if __name__ == "__main__":
    main()
