"""Runs `gateway` as its users do: a process with an environment, a URL on its standard output."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from gateway.store import migrate
from tests.tiny_models import build_model

DEAD_OLLAMA = "http://127.0.0.1:9"
Migrate = Callable[[dict[str, str]], None]


class GatewayProcess:
    """A served gateway; `url` is what it printed, `log` gets what it logs."""

    def __init__(
        self,
        environment: dict[str, str],
        log: IO[bytes] | int = subprocess.DEVNULL,
        wrapper: Sequence[str] = (),
    ) -> None:
        """`wrapper` is a command that runs what follows it."""
        self.environment = environment
        self.printed = ""
        self._process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "gateway", "serve"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self.url = self._read_url()
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def generate(self, model: str, text: str, **options: Any) -> dict[str, Any]:
        reply = self.client.post("/api/v1/generate", json=chat(model, text, **options))
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def kill(self) -> None:
        """End it as a power cut would: no handler runs."""
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self._process.wait(timeout=30)

    def close(self) -> None:
        self.client.close()
        if self._process.poll() is None:
            self.terminate()
            self.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read_url(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.printed += line
            if found := re.search(r"serves at (http://\S+)", line):
                # The lines that follow come in the same write.
                self.printed += "".join(self._process.stdout.readline() for _ in range(3))
                return found[1]
        raise AssertionError(f"the gateway did not start: {self.printed}")


def chat(model: str, text: str, **options: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "options": options}


def run_gateway(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a `gateway` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with `smol`, whose greedy answers fill its context of 1,024 tokens."""
    folder = tmp_path_factory.mktemp("models")
    build_model(folder / "smol", max_position_embeddings=1024)
    return folder


@pytest.fixture
def environment(tmp_path: Path, models_folder: Path) -> dict[str, str]:
    return environment_of(tmp_path, models_folder)


def environment_of(folder: Path, models_folder: Path) -> dict[str, str]:
    """Return what a gateway of its own needs; nothing of this machine's gateway settings."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GATEWAY_", "HF_", "OLLAMA"))}
    return clean | {
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_PORT": "0",
        "GATEWAY_NODE": "test",
        "GATEWAY_DRAIN_GRACE_S": "0.2",
        # Machines that run tests are busy with other things, too.
        "GATEWAY_CATALOG_TIMEOUT_S": "20",
        "GATEWAY_OLLAMA_CONTROL_TIMEOUT_S": "19",
        "HF_MODEL_PATH": str(models_folder),
        "HF_HOME": str(folder / "hf"),
        "OLLAMA_HOST": DEAD_OLLAMA,
    }


@pytest.fixture(scope="session")
def migrated(migrated_file: Path) -> Migrate:
    """Give the gateway of an environment its SQLite file at head: a copy, as the command that makes
    it takes two seconds."""

    def copy(environment: dict[str, str]) -> None:
        file = Path(environment["GATEWAY_DATA_DIR"]) / "gateway.db"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(migrated_file, file)

    return copy


@pytest.fixture
def serve(
    environment: dict[str, str], migrated: Migrate
) -> Iterator[Callable[..., GatewayProcess]]:
    """Start gateways over one migrated database; each call is a start anew."""
    started: list[GatewayProcess] = []
    upgraded: set[str] = set()

    def start(*, wrapper: Sequence[str] = (), **extra: str) -> GatewayProcess:
        chosen = environment | extra
        if url := chosen.get("GATEWAY_DATABASE_URL"):
            if url not in upgraded:
                migrate.upgrade(url)
                upgraded.add(url)
        else:
            migrated(chosen)
        started.append(GatewayProcess(chosen, wrapper=wrapper))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture
def rows(environment: dict[str, str]) -> Callable[[str], list[tuple[Any, ...]]]:
    """Read the gateway's SQLite file as an operator would."""

    def read(query: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(Path(environment["GATEWAY_DATA_DIR"]) / "gateway.db")
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    return read
