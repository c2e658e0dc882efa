"""The Hub and its token as an operator has them: commands, a running gateway, and no token left."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tests.integration.hub_peer.files import HubFile
from tests.integration.hub_peer.server import HubPeer
from tests.integration.process.conftest import GatewayProcess, Migrate, run_gateway

CANARY = "hf_canary0123456789abcdef"


class PeerThread:
    """A Hub on an event loop of its own: the commands block the test's thread."""

    def __init__(self) -> None:
        self.peer = HubPeer()
        self.peer.tokens[CANARY] = "alice"
        self.peer.files.add(
            "org/model",
            HubFile("config.json", b"{}", lfs=False),
            HubFile("model.safetensors", bytes(100)),
            downloads=7,
        )
        self._ready, self._done = threading.Event(), anyio.Event()
        self._thread = threading.Thread(target=anyio.run, args=(self._run,))

    def __enter__(self) -> HubPeer:
        self._thread.start()
        assert self._ready.wait(20)
        return self.peer

    def __exit__(self, *_: object) -> None:
        anyio.from_thread.run_sync(self._done.set, token=self._token)
        self._thread.join()

    async def _run(self) -> None:
        self._done, self._token = anyio.Event(), anyio.lowlevel.current_token()
        async with self.peer:
            self._ready.set()
            await self._done.wait()


@pytest.fixture
def peer() -> Iterator[HubPeer]:
    with PeerThread() as peer:
        yield peer


@pytest.fixture
def hub_environment(
    environment: dict[str, str], peer: HubPeer, migrated: Migrate
) -> dict[str, str]:
    chosen = environment | {"GATEWAY_HUB_ENDPOINT": peer.url, "GATEWAY_PROVIDERS": "ollama"}
    migrated(chosen)
    return chosen


@pytest.fixture
def gateway(hub_environment: dict[str, str]) -> Iterator[GatewayProcess]:
    process = GatewayProcess(hub_environment | {"GATEWAY_PROVIDERS": "huggingface"})
    yield process
    process.close()


def set_token(
    environment: dict[str, str], text: str, *options: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", "token", "set", *options],
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def read_json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_token_is_set_shown_validated_and_deleted(hub_environment: dict[str, str]) -> None:
    environment = hub_environment
    assert "no token" in run_gateway(environment, "token", "show").stdout
    done = set_token(environment, f"{CANARY}\n")
    assert (done.returncode, "alice" in done.stdout) == (0, True)
    assert read_json(run_gateway(environment, "token", "show", "--json"))["source"] == "stored"
    assert read_json(run_gateway(environment, "token", "validate", "--json"))["valid"] is True
    other = environment | {"HF_TOKEN": "hf_forgotten"}
    assert read_json(run_gateway(other, "token", "show", "--json"))["source"] == "stored"
    deleted = read_json(run_gateway(other, "token", "delete", "--json"))
    assert deleted["source"] == "environment"
    unknown = run_gateway(other, "token", "validate")
    assert (unknown.returncode, "does not know it" in unknown.stdout) == (1, True)


def test_a_token_that_cannot_be_checked_is_not_stored(hub_environment: dict[str, str]) -> None:
    for text, environment in (
        ("hf_wrong", hub_environment),
        ("", hub_environment),
        (CANARY, hub_environment | {"HF_HUB_OFFLINE": "1"}),
        (CANARY, hub_environment | {"GATEWAY_HUB_ENDPOINT": "http://127.0.0.1:9"}),
    ):
        done = set_token(environment, text)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("gateway: ")
        assert "Traceback" not in done.stderr
    assert "no token" in run_gateway(hub_environment, "token", "show").stdout
    assert set_token(environment, CANARY, "--no-validate").returncode == 0
    assert "stored" in run_gateway(hub_environment, "token", "show").stdout


def test_a_key_is_changed_by_a_start_with_both(hub_environment: dict[str, str]) -> None:
    old, new = "o" * 32, "n" * 32
    assert set_token(hub_environment | {"GATEWAY_SECRET_KEY": old}, CANARY).returncode == 0
    wrong = run_gateway(hub_environment | {"GATEWAY_SECRET_KEY": new}, "token", "show")
    assert (wrong.returncode, "cannot be read with this key" in wrong.stderr) == (1, True)
    GatewayProcess(hub_environment | {"GATEWAY_SECRET_KEY": f"{new},{old}"}).close()
    fresh = run_gateway(hub_environment | {"GATEWAY_SECRET_KEY": new}, "token", "validate")
    assert (fresh.returncode, "alice" in fresh.stdout) == (0, True)


def test_the_hub_is_searched_and_shown(
    hub_environment: dict[str, str], gateway: GatewayProcess
) -> None:
    port = gateway.url.rpartition(":")[2]
    environment = hub_environment | {"GATEWAY_PORT": port}
    listed = run_gateway(environment, "search", "mod")
    assert re.search(r"org/model\s+7\s", listed.stdout), listed
    nothing = run_gateway(environment, "search", "zzz")
    assert (nothing.returncode, nothing.stdout) == (0, "") and "no model" in nothing.stderr
    found = read_json(run_gateway(environment, "search", "mod", "--json"))
    assert [model["id"] for model in found["models"]] == ["org/model"]
    shown = run_gateway(environment, "hub", "show", "org/model")
    assert "yes, it needs 100 bytes of" in shown.stdout
    assert "model.safetensors" in shown.stdout
    missing = run_gateway(environment, "hub", "show", "org/none")
    assert (missing.returncode, "no repository 'org/none'" in missing.stderr) == (1, True)
    assert run_gateway(environment, "hub", "show", "none").returncode == 1
    wrong = run_gateway(environment, "hub", "show", "a/b/c")
    assert (wrong.returncode, "not the name of a repository" in wrong.stderr) == (1, True)
    assert "Qwen/" in run_gateway(environment, "hub", "recommended").stdout


def test_an_old_answer_is_found_again_after_a_start_without_the_hub(
    hub_environment: dict[str, str],
) -> None:
    first = GatewayProcess(hub_environment)
    assert first.client.get("/api/v1/hub/models/org/model").status_code == 200
    first.close()
    again = GatewayProcess(hub_environment | {"HF_HUB_OFFLINE": "1", "GATEWAY_HUB_CACHE_S": "0"})
    answer = again.client.get("/api/v1/hub/models/org/model").json()
    again.close()
    assert (answer["source"], answer["stale"]["code"]) == ("cache", "hub_offline")
    assert answer["size_bytes"] == 102


def test_no_token_is_left_anywhere(
    hub_environment: dict[str, str], peer: HubPeer, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    environment = hub_environment | {"GATEWAY_LOG_LEVEL": "debug", "HF_TOKEN": f"{CANARY}env"}
    said = [set_token(environment, CANARY).stdout, set_token(environment, f"{CANARY}bad").stderr]
    peer.fail_api("/api/models/org/away", 500)
    with log.open("wb") as file:
        gateway = GatewayProcess(environment, file)
        client: httpx.Client = gateway.client
        query = "mutation S($t: String!) { setHfToken(token: $t) { source account { name } } }"
        for token in (CANARY, f"{CANARY}bad", f"{CANARY} {CANARY}"):
            said.append(client.put("/api/v1/settings/hf-token", json={"token": token}).text)
            body = {"query": query, "variables": {"t": token}}
            said.append(client.post("/graphql", json=body).text)
        for path in ("models", "models/org/model", "models/org/none", "models/org/away"):
            said.append(client.get(f"/api/v1/hub/{path}").text)
        said.append(client.get("/api/v1/settings/hf-token?validate=true").text)
        said += [client.get("/health/ready").text, client.get("/metrics").text]
        gateway.close()
    said += [run_gateway(environment, "token", each).stdout for each in ("show", "validate")]
    data = Path(environment["GATEWAY_DATA_DIR"])
    written = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
    assert "alice" in "".join(said)
    assert b"org/model" in written
    assert {seen.token for seen in peer.seen("cdn")} == {None}
    assert CANARY in {seen.token for seen in peer.seen("hub")}
    for place in ("".join(said).encode(), log.read_bytes(), written):
        assert CANARY.encode() not in place
    assert peer.seen("hub", path="/api/models/org/away")


def test_a_token_is_typed_unseen_at_a_terminal(hub_environment: dict[str, str]) -> None:
    pty = pytest.importorskip("pty")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            sys.executable, [sys.executable, "-m", "gateway", "token", "set"], hub_environment
        )
    shown = b""
    try:
        while b"Token:" not in shown:
            shown += os.read(terminal, 1000)
        os.write(terminal, f"{CANARY}\n".encode())
        while chunk := _read(terminal):
            shown += chunk
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGHUP)
    assert b"alice" in shown
    assert CANARY.encode() not in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1000)
    except OSError:  # the other side is closed
        return b""
