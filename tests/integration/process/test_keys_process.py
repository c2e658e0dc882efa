"""Keys as an operator has them: commands, a running gateway, both databases, and no secret left."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from websockets.sync.client import connect

from tests.integration.ollama_peer import OllamaPeer, chat_line, chunks
from tests.integration.process.conftest import GatewayProcess, chat, run_gateway

KEY = re.compile(r"gw-[0-9a-f]{12}-[0-9a-f]{64}")


@pytest.fixture
def keyed_environment(environment: dict[str, str], database_url: str) -> dict[str, str]:
    """A gateway's environment with a migrated database of each kind, and without torch."""
    return environment | {"GATEWAY_DATABASE_URL": database_url, "GATEWAY_PROVIDERS": "ollama"}


@pytest.fixture
def start(keyed_environment: dict[str, str]) -> Iterator[Callable[..., GatewayProcess]]:
    started: list[GatewayProcess] = []

    def begin(**extra: str) -> GatewayProcess:
        started.append(GatewayProcess(keyed_environment | extra))
        return started[-1]

    yield begin
    for process in started:
        process.close()


def create(environment: dict[str, str], *arguments: str) -> str:
    done = run_gateway(environment, "keys", "create", *arguments)
    assert done.returncode == 0, done.stderr
    assert KEY.fullmatch(done.stdout.strip())
    return done.stdout.strip()


def until_status(client: httpx.Client, status: int, key: str) -> None:
    """Ask until a key counts, or no longer does; fail when that takes far too long."""
    deadline = time.monotonic() + 10
    while client.get("/v1/models", headers={"x-api-key": key}).status_code != status:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_key_of_the_command_works_before_and_after_the_start(
    keyed_environment: dict[str, str], start: Callable[..., GatewayProcess]
) -> None:
    first = create(keyed_environment, "first")
    gateway = start()
    assert gateway.client.get("/v1/models").status_code == 401
    assert gateway.client.get("/health/ready").status_code == 200
    headers = {"authorization": f"Bearer {first}"}
    assert gateway.client.get("/v1/models", headers=headers).status_code == 200
    until_status(gateway.client, 200, create(keyed_environment, "second"))
    gateway.close()
    again = start()
    assert again.client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/stream", "/v1/chat/completions"])
async def test_a_revocation_by_another_process_ends_a_live_stream_within_two_seconds(
    keyed_environment: dict[str, str],
    start: Callable[..., GatewayProcess],
    ollama_peer: OllamaPeer,
    path: str,
) -> None:
    ollama_peer.add_model("endless")
    ollama_peer.script("endless", chunks([chat_line("a"), asyncio.Event()]))
    key = await anyio.to_thread.run_sync(create, keyed_environment, "mine")
    gateway = await anyio.to_thread.run_sync(partial(start, OLLAMA_HOST=ollama_peer.url))
    body = chat("ollama/endless", "hi") | {"stream": True}
    async with (
        httpx.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False) as client,
        client.stream("POST", path, json=body, headers={"x-api-key": key}) as stream,
    ):
        chunked = stream.aiter_text()
        while '"a"' not in await anext(chunked):
            pass
        done = await anyio.to_thread.run_sync(
            run_gateway, keyed_environment, "keys", "revoke", key.split("-")[1]
        )
        assert done.returncode == 0, done.stderr
        with anyio.fail_after(10):
            rest = "".join([text async for text in chunked])
    assert '"code":"key_revoked"' in rest
    [asked] = ollama_peer.seen("/api/chat")
    await asked.until_closed()


def test_the_commands_show_keys_without_their_secrets(keyed_environment: dict[str, str]) -> None:
    nothing = run_gateway(keyed_environment, "keys", "list")
    assert "its own machine only" in nothing.stdout
    key = create(
        keyed_environment, "al\u00efce", "--scope", "manage", "--scope", "infer",
        "--max-streams", "3", "--requests-per-minute", "60",
    )  # fmt: skip
    key_id = key.split("-")[1]
    listed = run_gateway(keyed_environment, "keys", "list", "--json")
    [entry] = json.loads(listed.stdout)["keys"]
    assert (entry["id"], entry["name"]) == (key_id, "al\u00efce")
    assert entry["scopes"] == ["infer", "manage"]
    assert (entry["max_streams"], entry["requests_per_minute"]) == (3, 60)
    revoked = run_gateway(keyed_environment, "keys", "revoke", key_id)
    assert revoked.returncode == 0
    told = run_gateway(keyed_environment, "keys", "list")
    assert "revoked" in told.stdout
    assert key.split("-")[2] not in listed.stdout + told.stdout + revoked.stdout
    unknown = run_gateway(keyed_environment, "keys", "revoke", "0123456789ab")
    assert (unknown.returncode, unknown.stderr.splitlines()[0]) == (
        1,
        "gateway: There is no key of that id.",
    )
    wrong = run_gateway(keyed_environment, "keys", "create", "x", "--max-streams", "0")
    assert wrong.returncode == 1


def test_the_models_command_sends_its_key(
    keyed_environment: dict[str, str], start: Callable[..., GatewayProcess]
) -> None:
    key = create(keyed_environment, "cli", "--scope", "manage")
    gateway = start(GATEWAY_PROVIDERS="huggingface")
    chosen = keyed_environment | {"GATEWAY_PORT": gateway.url.rpartition(":")[2]}
    refused = run_gateway(chosen, "models", "list")
    assert refused.returncode == 1 and "API key is needed" in refused.stderr
    assert "GATEWAY_API_KEY" in refused.stderr
    listed = run_gateway(chosen | {"GATEWAY_API_KEY": key}, "models", "list")
    assert listed.returncode == 0 and "huggingface/smol" in listed.stdout


def test_a_gateway_without_keys_says_whom_it_serves(
    keyed_environment: dict[str, str], tmp_path: Path
) -> None:
    for host, expected in (("127.0.0.1", "its own machine only"), ("0.0.0.0", "keys create")):
        with logged(keyed_environment | {"GATEWAY_HOST": host}, tmp_path / host) as gateway:
            status = httpx.get(f"{gateway}/v1/models", trust_env=False).status_code
        assert status == (200 if host == "127.0.0.1" else 403)
        assert expected in (tmp_path / host).read_text()


def test_no_secret_is_left_anywhere(
    keyed_environment: dict[str, str], tmp_path: Path, database_url: str
) -> None:
    log = tmp_path / "log"
    secrets = []
    key = create(keyed_environment, "canary", "--scope", "admin")
    wrong = key[:-4] + ("0000" if key[-4:] != "0000" else "1111")
    pepper = (Path(keyed_environment["GATEWAY_DATA_DIR"]) / "key-pepper").read_text().strip()
    said = []
    with logged(keyed_environment | {"GATEWAY_LOG_LEVEL": "debug"}, log) as url:
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            for text in (key, wrong):
                for headers in ({"authorization": f"Bearer {text}"}, {"x-api-key": text}):
                    for path in ("/v1/models", "/nowhere", "/api/v1/keys", "/graphql"):
                        said.append(client.get(path, headers=headers).text)
                    said.append(client.post("/api/v1/generate", json={}, headers=headers).text)
            made = client.post(
                "/api/v1/keys",
                json={"name": "second", "scopes": ["infer"]},
                headers={"x-api-key": key},
            ).json()["key"]
        said += [talk(url, {"x-api-key": key}, {}), talk(url, {}, {"Authorization": key})]
        said.append(talk(url, {}, {"x-api-key": made}))
    secrets = [text.split("-")[2] for text in (key, wrong, made)] + [pepper]
    written = log.read_text() + "".join(said) + everything_in(database_url)
    assert "canary" in written
    for secret in secrets:
        assert secret not in written


def talk(url: str, headers: dict[str, str], payload: dict[str, str]) -> str:
    """Open a WebSocket, bring the key, and return what was answered."""
    with connect(
        f"{url.replace('http', 'ws', 1)}/graphql",
        subprotocols=["graphql-transport-ws"],  # type: ignore[list-item]
        additional_headers=headers,
        proxy=None,
    ) as socket:
        socket.send(json.dumps({"type": "connection_init", "payload": payload}))
        try:
            return str(socket.recv())
        except Exception as closed:
            return str(closed)


def everything_in(url: str) -> str:
    """Return every row of every table as text."""
    from sqlalchemy import inspect, text

    from gateway.store.database import create_sync_engine, parse_url

    engine = create_sync_engine(parse_url(url), timeout_s=5)
    with engine.connect() as connection:
        tables = inspect(connection).get_table_names()
        rows: list[Any] = [
            connection.execute(text(f"SELECT * FROM {table}")).all() for table in tables
        ]
    return repr(rows)


class logged:
    """A served gateway whose log goes to a file; gives its URL."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._environment = environment
        self._log = log

    def __enter__(self) -> str:
        with self._log.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve"],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r"serves at (http://\S+)", line):
                return found[1]
        raise AssertionError(self._log.read_text())

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()


def test_an_address_that_is_forwarded_is_believed_of_trusted_proxies_only(
    serve: Callable[..., GatewayProcess],
) -> None:
    told = {"x-forwarded-for": "203.0.113.5"}  # a stranger: without keys he is not served
    believing = serve()
    assert believing.client.get("/v1/models", headers=told).status_code == 403
    believing.terminate()
    believing.wait()
    doubting = serve(GATEWAY_TRUSTED_PROXIES="192.0.2.0/24,2001:db8::1")
    assert doubting.client.get("/v1/models", headers=told).status_code == 200
