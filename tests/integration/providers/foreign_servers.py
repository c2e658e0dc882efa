"""Real servers of other makers that speak the OpenAI API, each with one model.

`make test-peers` installs them once, as the benchmarks do. TRANSFORMERS_PYTHON and LLAMA_CPP_PYTHON
name a Python that has them instead.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import anyio

from bench.environments import ensure_environment
from gateway.core.errors import GatewayError
from gateway.core.names import ModelRef
from gateway.providers.openai import OpenAIService
from gateway.servers import OpenAIServer

START_S = 300.0


class Peer:
    """A running server, and the name of its model."""

    def __init__(self, kind: str, url: str, model: str) -> None:
        self.kind = kind
        self.url = url
        self.ref = ModelRef("lab", model)

    def service(self) -> OpenAIService:
        return OpenAIService("lab", OpenAIServer(urls=(self.url,), control_timeout_s=5.0))


@contextmanager
def transformers_serve(folder: Path, model: Path) -> Iterator[Peer]:
    """`transformers serve` with the model in a folder; what it needs goes to another."""
    python = _python("TRANSFORMERS_PYTHON", "transformers")
    # A cache of the Hub, as a download would leave it.
    repository = folder / "hub" / "models--lab--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    port = _free_port()
    command = [str(python.parent / "transformers"), "serve", "--port", str(port), "--device", "cpu"]
    environment = {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    with _running(command, environment, folder / "transformers.log"):
        yield Peer("transformers", f"http://127.0.0.1:{port}", "lab/tiny")


@contextmanager
def llama_cpp_server(folder: Path, model: Path) -> Iterator[Peer]:
    """llama-cpp-python's server with the model in a folder, in 32 bits, as a GGUF file."""
    python = _python("LLAMA_CPP_PYTHON", "llama-cpp-server")
    file = folder / "tiny.gguf"
    write = (
        "import sys; from pathlib import Path; from tests.tiny_gguf import build_gguf; "
        "build_gguf(Path(sys.argv[2]), Path(sys.argv[1]))"
    )
    subprocess.run([str(python), "-c", write, str(model), str(file)], check=True)
    context = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    port = _free_port()
    options = {"model": file, "model_alias": "tiny", "n_ctx": context, "port": port}
    command = [str(python), "-m", "llama_cpp.server"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    with _running(command, {}, folder / "llama.log"):
        yield Peer("llama-cpp-server", f"http://127.0.0.1:{port}", "tiny")


def _python(variable: str, name: str) -> Path:
    given = os.environ.get(variable)
    return Path(given) if given else ensure_environment(name) / "python"


@contextmanager
def _running(command: list[str], extra: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=os.environ | extra, stdout=file, stderr=file)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            sys.stderr.write(log.read_text(errors="replace"))  # shown when a test failed


async def wait_until_it_lists(peer: Peer) -> None:
    service = peer.service()
    try:
        with anyio.fail_after(START_S):
            while True:
                with suppress(GatewayError):
                    if peer.ref in [info.ref for info in await service.models()]:
                        return
                await anyio.sleep(0.25)  # a server of another maker gives no sign
    finally:
        await service.aclose()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


STARTERS: dict[str, Callable[[Path, Path], AbstractContextManager[Peer]]] = {
    "transformers": transformers_serve,
    "llama-cpp-server": llama_cpp_server,
}
