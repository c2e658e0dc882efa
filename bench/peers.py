"""The peers of the engine, by name: the command and the environment of each."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.environments import DATA, ROOT, ensure_environment
from bench.processes import Peer, ServerPeer, WorkerPeer


@dataclass(frozen=True)
class Task:
    """What a peer must be ready for: a model of bench.shapes, and at most so many streams of so
    many tokens, prompt and answer together."""

    folder: Path
    streams: int
    context: int
    cb_memory: float
    device: str = "cpu"


def start_ours(way: str) -> Callable[[Task], Peer]:
    def make(task: Task) -> Peer:
        sizes = [str(task.folder), str(task.streams), task.device]
        command = [sys.executable, "-m", "bench.ours", way, *sizes]
        return WorkerPeer(command, clean_environment())

    return make


def make_gateway(task: Task, **settings: str) -> ServerPeer:
    """Return `gateway serve` with a models folder that holds the task's model, and a database of
    its own; `settings` are further variables of its environment."""
    port = free_port()
    data = tempfile.TemporaryDirectory(prefix="gateway-", dir=DATA)
    environment = clean_environment() | {
        "GATEWAY_DATA_DIR": data.name,
        "GATEWAY_PORT": str(port),
        "GATEWAY_PROVIDERS": "huggingface",
        "GATEWAY_LOG_LEVEL": "warning",
        "GATEWAY_HF_DEVICE": task.device,
        "GATEWAY_HF_MAX_ACTIVE": str(task.streams),
        "GATEWAY_HF_MAX_QUEUE": str(task.streams),
        "HF_MODEL_PATH": str(task.folder.parent),
        "HF_HOME": data.name + "/hf",
        **settings,
    }
    gateway = [sys.executable, "-m", "gateway"]
    subprocess.run([*gateway, "db", "upgrade"], env=environment, check=True, stdout=sys.stderr)
    return ServerPeer(
        [*gateway, "serve"],
        environment,
        url=f"http://127.0.0.1:{port}",
        ready="/v1/models",
        model=f"huggingface/{task.folder.name}",
        data=data,
        status=f"/api/v1/models/status?model=huggingface/{task.folder.name}",
    )


def make_transformers(task: Task, *options: str) -> ServerPeer:
    """Return `transformers serve`, which is to load the task's model at its first request."""
    port = free_port()
    command = [
        str(ensure_environment("transformers") / "transformers"),
        "serve",
        f"--device={task.device}",
        f"--port={port}",
        "--host=127.0.0.1",
        *options,
    ]
    environment = clean_environment() | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(DATA / "hf")}
    return ServerPeer(
        command,
        environment,
        url=f"http://127.0.0.1:{port}",
        ready="/health",
        model=str(task.folder),
    )


def make_transformers_batching(task: Task) -> ServerPeer:
    return make_transformers(
        task, "--continuous-batching", f"--cb-max-memory-percent={task.cb_memory}"
    )


def make_naive(task: Task) -> Peer:
    python = ensure_environment("transformers") / "python"
    command = [str(python), "-m", "bench.naive", str(task.folder), task.device]
    return WorkerPeer(command, clean_environment())


def make_llama_cpp(task: Task) -> Peer:
    python = str(ensure_environment("llama-cpp") / "python")
    # Not among the models, where a gateway would find it.
    file = DATA / "gguf" / f"{task.folder.name}.gguf"
    file.parent.mkdir(exist_ok=True)
    environment = clean_environment()
    if not file.exists():
        write = [python, "-m", "bench.gguf_file", str(task.folder), str(file)]
        subprocess.run(write, cwd=ROOT, env=environment, check=True)
    sizes = [str(task.streams), str(task.context)]
    return WorkerPeer([python, "-m", "bench.llama_loop", str(file), *sizes], environment)


PEERS: Mapping[str, Callable[[Task], Peer]] = {
    "gateway": make_gateway,
    "serve-cb": make_transformers_batching,
    "serve": make_transformers,
    "ours": start_ours("packed"),
    "llama.cpp": make_llama_cpp,
    "naive": make_naive,
    "plain": start_ours("plain"),
    "serial": start_ours("serial"),
}
TITLES = {
    "gateway": "ours, the gateway over HTTP",
    "serve-cb": "transformers serve --continuous-batching, HTTP",
    "serve": "transformers serve, HTTP",
    "ours": "ours, the engine in process",
    "llama.cpp": "llama.cpp bf16, batch loop in process",
    "naive": "generate() in a thread for each stream",
    "plain": "ours without packed layers",
    "serial": "ours, one forward pass for each stream",
}


IN_PROCESS = frozenset({"ours", "llama.cpp", "naive", "plain", "serial"})
"""Those that are asked without HTTP."""

ON_GPU = frozenset({"gateway", "serve-cb", "serve", "ours", "naive", "serial"})
"""Those that have a form for a GPU: llama.cpp is compiled for the CPU, and layers are packed there
alone."""


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what configures models or gateways."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GATEWAY_", "HF_", "OLLAMA"))}
    return kept | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
